"""TRL's PPO trainer and ours in turn, on the same models, prompts and batches: `python -m benchmarks [SHAPE ...]`.

Each measurement is a process of its own; trainers alternate, so that what else the machine does falls on both. Prints a
table and writes benchmarks/results.json.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.cost import gemm_rate, iteration_operations, weights_of
from benchmarks.shapes import SHAPES, build

RESULTS = Path(__file__).with_name("results.json")
RUNS = Path("runs/benchmarks")
# TRL's settings that keep float32 masters; the faster one counts. bfloat16 weights without masters are shown besides.
TRL_BEST = ("trl_fp32", "trl_autocast", "trl_autocast_eager")
OURS = ("fp32", "bf16", "best")


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", default=list(SHAPES))
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=2, help="of each process; the first one warms up")
    arguments = parser.parse_args()
    rates = {"fp32": gemm_rate(torch.float32), "bf16": gemm_rate(torch.bfloat16)}
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"shapes": {}}
    kept |= {"machine": machine(rates), "date": date.today().isoformat()}
    for name in arguments.shapes:
        policy = sft_policy() if SHAPES[name].vocabulary is None else None
        runs = measure(name, policy, arguments.repetitions, arguments.iterations)
        kept["shapes"][name] = summarise(name, policy, runs, rates)
        show(name, kept["shapes"][name])
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


def machine(rates: dict[str, float]) -> dict[str, Any]:
    """Describe what was measured on."""
    return {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **{f"gemm_gflops_{name}": round(rate / 1e9) for name, rate in rates.items()},
    }


def sft_policy() -> Path:
    """Train the quickstart's SFT policy, unless it is there."""
    command = [sys.executable, "-m", "rlhf", "sft", "configs/quickstart.yaml", f"runs_dir={RUNS}"]
    subprocess.run(command, check=True)
    return RUNS / "quickstart" / "sft"


def measure(shape: str, policy: Path | None, repetitions: int, iterations: int) -> dict[str, list[dict[str, Any]]]:
    """Run every mode `repetitions` times, in turn."""
    modes = [*TRL_BEST, "trl_bf16_eager", *OURS]
    runs: dict[str, list[dict[str, Any]]] = {mode: [] for mode in modes}
    for _ in range(repetitions):
        for mode in modes:
            command = [sys.executable, "-m", "benchmarks.worker", shape, mode, "--iterations", str(iterations)]
            command += ["--policy", str(policy)] if policy else []
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            runs[mode].append(json.loads(done.stdout.splitlines()[-1]))
            print(shape, mode, [round(s, 2) for s in runs[mode][-1]["seconds"]], flush=True)
    return runs


def summarise(
    name: str, policy: Path | None, runs: dict[str, list[dict[str, Any]]], rates: dict[str, float]
) -> dict[str, Any]:
    """Ratios of iteration times (TRL's over ours; above 1 we are faster), medians over repetitions and their range."""
    shape = SHAPES[name]
    seconds = {mode: [statistics.mean(run["seconds"]) for run in done] for mode, done in runs.items()}
    best = min(TRL_BEST, key=lambda mode: statistics.median(seconds[mode]))
    trunk, output_layer = weights_of(build(shape, policy).policy)
    summary: dict[str, Any] = {"trl_best": best, "modes": {}}
    for key, ours, stock in (
        ("ratio_fp32", "fp32", "trl_fp32"),
        ("ratio_same", "bf16", best),
        ("ratio_best", "best", best),
    ):
        ratios = sorted(theirs / own for theirs, own in zip(seconds[stock], seconds[ours], strict=True))
        summary[key], summary[f"{key}_range"] = statistics.median(ratios), [ratios[0], ratios[-1]]
    for mode, done in runs.items():
        last, own = done[-1], statistics.median(seconds[mode])
        needed = iteration_operations(
            trunk, output_layer, last["prompt_tokens"], last["response_tokens"], shape.epochs,
            critic=mode != "best", full=not shape.lora,
        )  # fmt: skip
        rate = rates["fp32" if mode in ("fp32", "trl_fp32") else "bf16"]
        summary["modes"][mode] = {
            "seconds": own,
            "samples_per_second": shape.episodes / own,
            "phases": last["phases"],
            "peak_gb": statistics.median(run["peak_gb"] for run in done),
            "limit_fraction": needed / rate / own,
        }
    summary["memory_ratio"] = summary["modes"]["bf16"]["peak_gb"] / summary["modes"][best]["peak_gb"]
    summary["limit_fraction"] = summary["modes"]["best"]["limit_fraction"]
    return summary


def show(name: str, summary: dict[str, Any]) -> None:
    """Print one shape."""
    table = Table(
        "trainer", "s/iteration", "samples/s", "rollout", "score", "update", "peak GB", "of the limit", title=name
    )
    for mode, row in summary["modes"].items():
        phases = [f"{row['phases'][phase]:.2f}" for phase in ("rollout", "score", "update")]
        table.add_row(
            mode, f"{row['seconds']:.2f}", f"{row['samples_per_second']:.2f}", *phases, f"{row['peak_gb']:.2f}",
            f"{row['limit_fraction']:.0%}",
        )  # fmt: skip
    Console(width=120).print(table)
    for key in ("ratio_fp32", "ratio_same", "ratio_best"):
        low, high = summary[f"{key}_range"]
        print(f"{name} {key}: {summary[key]:.2f} ({low:.2f} to {high:.2f})")
    print(f"{name} memory_ratio: {summary['memory_ratio']:.2f}")


if __name__ == "__main__":
    main()
