"""TRL's PPO trainer and ours in turn, on the same models, prompts and batches: `python -m benchmarks [SHAPE ...]`.

Each measurement is a process of its own, with a seed of its repetition; trainers alternate, so that what else the
machine does falls on all. Every trainer is measured at least once. Settings of TRL that were clearly slower than its
best ones are left out from then on, and marked. Prints tables and writes benchmarks/results/speed.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.cost import iteration_operations, weights_of
from benchmarks.machine import GEMM_SIZE, describe, gemm_rates
from benchmarks.shapes import SHAPES, build
from benchmarks.trainers import MODES, PHASES, modes_here

# Of the machine measured last; results of others are kept beside it.
RESULTS = Path(__file__).parent / "results" / "speed.json"
RUNS = Path("runs/benchmarks")
# TRL's settings that keep float32 masters; the fastest one counts. bfloat16 weights without masters are shown besides.
TRL_BEST = ("trl_fp32", "trl_autocast", "trl_autocast_eager")
OURS = ("fp32", "bf16", "best")
CLEARLY_SLOWER = 1.15

Runs = dict[str, list[dict[str, Any]]]


class Plan(NamedTuple):
    """How often a shape is measured."""

    repetitions: int
    iterations: int  # of each process; if several, the first warms up and is not counted


PLANS = {"A": Plan(3, 2), "B": Plan(3, 2), "C": Plan(2, 2), "D": Plan(2, 2)}


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=f"of {', '.join(SHAPES)}; default: all")
    parser.add_argument("--repetitions", type=int, help="of each trainer, instead of the planned ones")
    parser.add_argument("--iterations", type=int, help="of each process, instead of the planned ones")
    arguments = parser.parse_args()
    if unknown := set(arguments.shapes) - set(SHAPES):
        parser.error(f"unknown shape {min(unknown)}; there are {', '.join(SHAPES)}")
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"shapes": {}}
    started = time.perf_counter()
    for name in arguments.shapes or SHAPES:
        begun = time.perf_counter()
        policy = sft_policy() if SHAPES[name].vocabulary is None else None
        rates = gemm_rates()
        plan = Plan(arguments.repetitions or PLANS[name].repetitions, arguments.iterations or PLANS[name].iterations)
        summary = summarise(name, policy, measure(name, policy, plan), rates)
        minutes = (time.perf_counter() - begun) / 60
        kept["shapes"][name] = {"date": date.today().isoformat(), "minutes": round(minutes, 1), **summary}
        kept |= {"machine": describe(), "date": date.today().isoformat()}
        show(name, kept["shapes"][name])
        RESULTS.write_text(json.dumps(rounded(kept), indent=1) + "\n")
    print(f"total: {(time.perf_counter() - started) / 60:.0f} minutes; kept in {RESULTS}")


def sft_policy() -> Path:
    """Train the quickstart's SFT policy, unless it is there."""
    command = [sys.executable, "-m", "rlhf", "sft", "configs/quickstart.yaml", f"runs_dir={RUNS}"]
    subprocess.run(command, check=True)
    return RUNS / "quickstart" / "sft"


def measure(shape: str, policy: Path | None, plan: Plan) -> Runs:
    """Run every mode, in turn; those that could still be a best one, several times."""
    modes = modes_here()
    runs: Runs = {mode: [] for mode in modes}
    for repetition in range(plan.repetitions):
        for mode in modes:
            runs[mode].append(run_worker(shape, mode, policy, plan.iterations, seed=repetition))
            print(f"{shape} {mode} {runs[mode][-1]['seconds']:.2f} s", flush=True)
        modes = contenders(runs)
    return runs


def run_worker(shape: str, mode: str, policy: Path | None, iterations: int, seed: int) -> dict[str, Any]:
    """Measure once, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.worker", shape, mode, f"--iterations={iterations}", f"--seed={seed}"]
    command += [f"--policy={policy}"] if policy else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def contenders(runs: Runs) -> list[str]:
    """Name the modes to go on with: ours, TRL in float32, and what is not clearly slower than TRL's best settings."""
    seconds = {mode: median(runs[mode], "seconds") for mode in TRL_BEST if mode in runs}
    near = [mode for mode, taken in seconds.items() if taken <= CLEARLY_SLOWER * min(seconds.values())]
    return [mode for mode in runs if mode in (*OURS, "trl_fp32", *near)]


def median(runs: list[dict[str, Any]], key: str) -> float:
    """Over repetitions."""
    return float(statistics.median(run[key] for run in runs))


def summarise(name: str, policy: Path | None, runs: Runs, rates: dict[str, float]) -> dict[str, Any]:
    """Ratios of iteration times (TRL's over ours; above 1 we are faster), medians over repetitions and their range."""
    often = max(len(done) for done in runs.values())
    complete = {mode: median(done, "seconds") for mode, done in runs.items() if len(done) == often}
    stock = min((mode for mode in TRL_BEST if mode in complete), key=complete.__getitem__)
    same = min((mode for mode in ("fp32", "bf16") if mode in complete), key=complete.__getitem__)
    summary: dict[str, Any] = {"repetitions": often, "trl_best": stock, "same": same}
    for key, theirs, own in (
        ("ratio_fp32", "trl_fp32", "fp32"),
        ("ratio_same", stock, same),
        ("ratio_best", stock, "best"),
    ):
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(runs[theirs], runs[own], strict=True)]
        summary |= {key: statistics.median(ratios), f"{key}_range": [min(ratios), max(ratios)]}
    weights = weights_of(build(SHAPES[name], policy).policy)
    summary["modes"] = {mode: summarise_mode(name, mode, done, weights, rates) for mode, done in runs.items()}
    peaks = {mode: row["peak_gb"] for mode, row in summary["modes"].items()}
    summary |= {"memory_ratio": peaks[same] / peaks[stock], "memory_ratio_best": peaks["best"] / peaks[stock]}
    summary["limit_fraction"] = summary["modes"]["best"]["limit_fraction"]
    return summary | {
        "gemm_gflops": {key: rate / 1e9 for key, rate in rates.items()},
        "gemm_shape": f"{GEMM_SIZE} x {GEMM_SIZE} x {GEMM_SIZE}",
    }


def summarise_mode(
    name: str, mode: str, runs: list[dict[str, Any]], weights: tuple[int, int], rates: dict[str, float]
) -> dict[str, Any]:
    """Medians of one trainer, and the share of its time that the matrix products of real tokens would take."""
    shape, trainer, seconds = SHAPES[name], MODES[mode], median(runs, "seconds")
    needed = [
        iteration_operations(
            *weights, run["prompt_tokens"], run["response_tokens"], shape.epochs,
            critic=trainer.critic == "separate", full=not shape.lora,
        )
        for run in runs
    ]  # fmt: skip
    rate = rates["bf16" if trainer.in_bfloat16 else "fp32"]
    return {
        "runs": len(runs),
        "seconds": seconds,
        "first_seconds": median(runs, "first_seconds"),
        "samples_per_second": shape.episodes / seconds,
        "phases": {phase: statistics.median(run["phases"][phase] for run in runs) for phase in PHASES},
        "response_tokens": median(runs, "response_tokens"),
        "peak_gb": median(runs, "peak_gb"),
        "tflop": statistics.median(needed) / 1e12,
        "limit_fraction": statistics.median(needed) / rate / seconds,
    }


def rounded(value: Any) -> Any:
    """Four digits, which is more than repetitions agree on."""
    if isinstance(value, dict):
        return {key: rounded(member) for key, member in value.items()}
    if isinstance(value, list):
        return [rounded(member) for member in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def show(name: str, summary: dict[str, Any]) -> None:
    """Print one shape."""
    columns = ("trainer", "runs", "s/iteration", "samples/s", *PHASES, "tokens", "peak GB", "of the limit")
    table = Table(*columns, title=f"{name}: medians of an iteration")
    for mode, row in summary["modes"].items():
        phases = [f"{row['phases'][phase]:.2f}" for phase in PHASES]
        table.add_row(
            mode, str(row["runs"]), f"{row['seconds']:.2f}", f"{row['samples_per_second']:.2f}", *phases,
            f"{row['response_tokens']:.0f}", f"{row['peak_gb']:.2f}", f"{row['limit_fraction']:.0%}",
        )  # fmt: skip
    Console(width=120).print(table)
    for key in ("ratio_fp32", "ratio_same", "ratio_best"):
        low, high = summary[f"{key}_range"]
        print(f"{name} {key}: {summary[key]:.2f} ({low:.2f} to {high:.2f})")
    shared = summary["memory_ratio_best"]
    print(f"{name} memory_ratio: {summary['memory_ratio']:.2f}, with the shared critic {shared:.2f}")
    gemm = ", ".join(f"{key} {rate:.0f}" for key, rate in summary["gemm_gflops"].items())
    print(f"{name} limit_fraction: {summary['limit_fraction']:.2f}; GEMM of {summary['gemm_shape']}, GFLOP/s: {gemm}")
    once = [mode for mode, row in summary["modes"].items() if row["runs"] < summary["repetitions"]]
    print(f"{name} ran once only, being slower than TRL's best settings or no rivals: {', '.join(once) or 'none'}")
    print(f"{name} took {summary['minutes']:.1f} minutes\n", flush=True)


if __name__ == "__main__":
    main()
