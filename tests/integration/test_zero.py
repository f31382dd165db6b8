"""Two processes under DeepSpeed ZeRO, started as a user would: the numbers of one, and folders that load in one.

The SFT stage trains all weights; the reward model has a backbone of its own and is trained by LoRA. Under ZeRO-3 every
weight is spread, however small.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from stage_helpers import (
    make_config,
    mean_response_loss,
    rows_of,
    write,
    write_demonstrations,
    write_preferences,
)
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from reward_models.normalise import Normalisation
from reward_models.scalar import ScalarRewardModel
from rlhf.files.run_folder import RunFolder
from rlhf.run.manifest import Manifest
from rlhf.tracking.jsonl import read_series

pytestmark = pytest.mark.slow

BACKBONE = {
    "architecture": {"hidden_size": 24, "layers": 2, "heads": 2, "max_positions": 128},
    "tokenizer": {"vocab_size": 280},
    "lora": {"rank": 4, "alpha": 16},
}
SPREAD_ALL = "distributed.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 0}}"
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "rlhf"]
ACCELERATE = [
    sys.executable,
    "-m",
    "accelerate.commands.launch",
    "--use_deepspeed",
    "--num_processes",
    "2",
    "-m",
    "rlhf",
]


def write_run(folder: Path) -> Path:
    """Data and a configuration file. Rows make whole batches: several processes fill up the last one."""
    write_demonstrations(folder / "demonstrations.jsonl", train=24, validation=7)
    write_preferences(folder / "preferences.jsonl", train=16, validation=5)
    config = make_config(
        folder,
        sft={"learning_rate": 3e-3, "epochs": 2, "evaluate_every_steps": 2},
        reward={
            "learning_rate": 3e-3,
            "model": BACKBONE,
            "normalisation_samples": 9,
            "normalisation_max_response_tokens": 6,
        },
    )
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)), "utf-8")
    return path


def rlhf(folder: Path, *arguments: str, launcher=(sys.executable, "-m", "rlhf"), command="run"):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [*launcher, command, str(folder / "config.yaml"), *arguments]
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=400, check=False)


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    write_run(folder)
    done = rlhf(folder)
    assert done.returncode == 0, done.stderr
    return RunFolder(folder / "tiny")


def results_of(folder: RunFolder, stage: str):
    return Manifest.read(folder.manifest).stages[stage].results


@pytest.mark.parametrize(("zero", "overrides"), [(2, ()), (3, (SPREAD_ALL,))])
def test_two_processes_under_zero_agree_with_one(one_process, tmp_path, zero, overrides):
    path = write_run(tmp_path)
    done = rlhf(tmp_path, *overrides, "--processes", "2", "--zero", str(zero))
    assert done.returncode == 0, done.stderr
    folder = RunFolder(path.parent / "tiny")
    expected, found = read_series(one_process.root), read_series(folder.root)
    for name in (
        "sft/loss",
        "sft/validation_loss",
        "reward/loss",
        "reward/validation_loss",
        "reward/validation_margin",
    ):
        assert [step for step, _ in found[name]] == [step for step, _ in expected[name]]
        assert [v for _, v in found[name]] == pytest.approx([v for _, v in expected[name]], abs=1e-4), name

    validation = rows_of(make_config(tmp_path, sft={}).sft.data, "demonstrations").validation
    measured = results_of(folder, "sft")["validation_loss"]
    assert mean_response_loss(folder.sft, validation) == pytest.approx(measured, abs=1e-4)
    for auto_class, ours, theirs in (
        (AutoModelForCausalLM, folder.sft, one_process.sft),
        (AutoModelForSequenceClassification, folder.reward, one_process.reward),
    ):
        weights, others = (auto_class.from_pretrained(path).state_dict() for path in (ours, theirs))
        assert all(torch.allclose(weights[name], others[name], atol=1e-4) for name in others)
    pairs = rows_of(make_config(tmp_path, reward={}).reward.data, "preferences").validation
    prompts, chosen, rejected = zip(*((p.prompt, p.chosen, p.rejected) for p in pairs), strict=True)
    model = ScalarRewardModel.from_folder(folder.reward)
    margin = (model.raw_score(prompts, chosen) - model.raw_score(prompts, rejected)).mean()
    assert margin == pytest.approx(results_of(folder, "reward")["mean_margin"], abs=1e-4)
    assert Normalisation.load(folder.reward).mean == pytest.approx(
        Normalisation.load(one_process.reward).mean, abs=1e-3
    )


@pytest.mark.parametrize(("launcher", "arguments"), [(TORCHRUN, ()), (ACCELERATE, ("--zero", "1"))])
def test_other_launchers_give_the_same(one_process, tmp_path, launcher, arguments):
    path = write_run(tmp_path)
    done = rlhf(tmp_path, *arguments, launcher=launcher, command="sft")
    assert done.returncode == 0, done.stderr
    expected, found = read_series(one_process.root), read_series(path.parent / "tiny")
    for name in ("sft/loss", "sft/validation_loss"):
        assert [v for _, v in found[name]] == pytest.approx([v for _, v in expected[name]], abs=1e-4)


def test_a_users_mistake_ends_all_processes_with_its_message(tmp_path):
    write_run(tmp_path)
    write(tmp_path / "demonstrations.jsonl", [{"prompt": "say red", "completion": ""}])
    done = rlhf(tmp_path, "--processes", "2", command="sft")
    assert done.returncode == 2
    assert "the response is empty" in done.stderr
    assert "Traceback" not in done.stderr
