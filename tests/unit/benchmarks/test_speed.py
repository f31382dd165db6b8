"""The comparison of speed: what is measured again, what ratios are made of, and what the limit is."""

from dataclasses import replace

import pytest
import torch

import benchmarks.__main__ as speed
from benchmarks import trainers
from benchmarks.cost import iteration_operations, weights_of
from benchmarks.machine import describe, gemm_rate
from benchmarks.shapes import SHAPES, Shape, build
from benchmarks.trainers import MODES, PHASES

SECONDS = {
    "trl_fp32": [12.0, 12.0, 15.0],
    "fp32": [6.0, 6.0, 5.0],
    "trl_autocast_eager": [10.0, 9.0, 11.0],
    "bf16": [3.0, 3.0, 2.0],
    "best": [2.0, 1.0, 2.0],
    "trl_autocast": [20.0],
    "trl_bf16_eager": [5.0],
}


def runs():
    """Measurements with these seconds; ours need half the memory."""
    return {
        mode: [
            {
                "seconds": one,
                "first_seconds": 2 * one,
                "phases": dict.fromkeys(PHASES, one / 3),
                "prompt_tokens": 100,
                "response_tokens": 200.0,
                "peak_gb": 4.0 if MODES[mode].stock else 2.0,
            }
            for one in seconds
        ]
        for mode, seconds in SECONDS.items()
    }


def test_the_modes_here_are_all_there_are():
    assert list(SECONDS) == list(MODES)
    assert set(speed.PLANS) == set(SHAPES)


def test_what_cannot_be_the_best_is_measured_once():
    first = {mode: done[:1] for mode, done in runs().items()}
    assert speed.contenders(first) == ["trl_fp32", "fp32", "trl_autocast_eager", "bf16", "best"]
    first["trl_autocast_eager"][0]["seconds"] = 11.4  # TRL's best is now within 15% of another, which stays too
    first["trl_autocast"][0]["seconds"] = 13.0
    assert "trl_autocast" in speed.contenders(first)


def test_modes_take_turns_and_the_seed_is_the_repetitions(monkeypatch):
    asked = []

    def run_worker(shape, mode, policy, iterations, seed):
        asked.append((mode, seed))
        return {"seconds": SECONDS[mode][0]}

    monkeypatch.setattr(speed, "run_worker", run_worker)
    monkeypatch.setattr(speed, "modes_here", lambda: list(MODES))
    speed.measure("A", None, speed.Plan(repetitions=2, iterations=1))
    assert [mode for mode, seed in asked if seed == 0] == list(MODES)
    assert [mode for mode, seed in asked if seed == 1] == ["trl_fp32", "fp32", "trl_autocast_eager", "bf16", "best"]


def test_without_bfloat16_products_everything_is_measured_in_float32(monkeypatch):
    monkeypatch.setattr(trainers, "multiplies_bfloat16", lambda: False)
    monkeypatch.setitem(MODES, "best", replace(MODES["best"], bf16=False))  # as it is on such a machine
    assert trainers.modes_here() == ["trl_fp32", "fp32", "best"]
    measured = {mode: done for mode, done in runs().items() if mode in trainers.modes_here()}
    assert speed.contenders(measured) == ["trl_fp32", "fp32", "best"]
    monkeypatch.setitem(speed.SHAPES, "A", Shape(16, 4, 4, epochs=2, minibatches=2, layers=1, hidden_size=64))
    summary = speed.summarise("A", None, measured, {"fp32": 1e9})
    assert (summary["trl_best"], summary["same"]) == ("trl_fp32", "fp32")
    assert summary["ratio_same"] == summary["ratio_fp32"]


def test_ratios_are_those_of_a_repetition_and_bfloat16_without_masters_is_no_rival(monkeypatch, capsys):
    monkeypatch.setitem(speed.SHAPES, "A", Shape(16, 4, 4, epochs=2, minibatches=2, layers=1, hidden_size=64))
    monkeypatch.setitem(MODES, "best", replace(MODES["best"], bf16=True))
    rates = {"fp32": 1e9, "bf16": 4e9}
    summary = speed.summarise("A", None, runs(), rates)
    assert (summary["trl_best"], summary["same"], summary["repetitions"]) == ("trl_autocast_eager", "bf16", 3)
    assert (summary["ratio_fp32"], summary["ratio_fp32_range"]) == (2.0, [2.0, 3.0])
    assert (summary["ratio_same"], summary["ratio_same_range"]) == (pytest.approx(10 / 3), [3.0, 5.5])
    assert (summary["ratio_best"], summary["ratio_best_range"]) == (5.5, [5.0, 9.0])
    assert summary["memory_ratio"] == 0.5
    best = summary["modes"]["best"]
    assert best["limit_fraction"] == summary["limit_fraction"] == pytest.approx(best["tflop"] * 1e12 / 4e9 / 2.0)
    assert summary["modes"]["fp32"]["tflop"] > best["tflop"]  # which has no second trunk to train
    speed.show("A", speed.rounded({**summary, "minutes": 1.0}))
    printed = capsys.readouterr().out
    assert "A ratio_best: 5.50 (5.00 to 9.00)" in printed
    assert "ran once only, being slower than TRL's best settings or no rivals: trl_autocast, trl_bf16_eager" in printed


def test_a_worker_that_fails_says_why(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho out of memory >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(speed.sys, "executable", str(python))
    with pytest.raises(SystemExit, match=r"benchmarks.worker A fp32 --iterations=1 --seed=0 failed:\nout of memory"):
        speed.run_worker("A", "fp32", None, iterations=1, seed=0)


def test_the_operations_of_an_iteration_are_those_of_its_phases():
    """Trunk 10, output layer 100, 3 prompt and 2 response tokens: 100 operations a trunk, 400 for logits."""
    sampled, scored = 100 + 400, (100 + 400) * 2 + 100  # policy and reference; the reward model has no logits
    critic = 100 + 2 * 300
    policy = 2 * 3 * (100 + 400)
    count = iteration_operations(10, 100, 3, 2, 2, critic=True, full=True)
    assert count == sampled + scored + critic + policy
    assert iteration_operations(10, 100, 3, 2, 2, critic=False, full=True) == count - critic
    assert iteration_operations(10, 100, 3, 2, 2, critic=True, full=False) == count - policy / 3


def test_the_matrices_of_a_model_are_counted():
    shape = Shape(16, 4, 4, epochs=1, minibatches=1, layers=2, hidden_size=64, intermediate_size=32)
    assert weights_of(build(shape, None).policy) == (2 * (4 * 64**2 + 3 * 64 * 32), 64 * 16)


def test_the_machine_is_described():
    assert describe()["processor"]
    assert gemm_rate(torch.float32, windows=1, seconds=0.01) > 1e8
