"""Whether our trainer is faster by learning less: `python -m benchmarks.learning`.

Trains TRL's trainer and each of our modes on the tasks of `tasks.py`, from the same weights, on the same prompts, with
the same number of samples, epochs and optimizer steps and the same learning rate; a seed sets weights, prompts and
samples. What was reached is the mean reward (score minus KL penalty) of the last iterations.

The rule: d is our reward minus TRL's, one for each seed, with a 95% interval for its mean (Student's t). A mode is
"worse" if the whole interval lies below 0, and its middle more than 1% of what TRL's trainer learnt. Otherwise it is
"not worse" if the interval reaches down by less than 10% of what TRL's trainer learnt, and "undecided" if by more.
"""

import argparse
import gc
import json
import math
import multiprocessing
import os
import statistics
import time
import warnings
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table

from benchmarks.machine import describe
from benchmarks.tasks import TASKS
from benchmarks.trainers import MODES, modes_here, train

RESULTS = Path(__file__).parent / "results" / "learning.json"
STOCK, OURS = "trl_fp32", [mode for mode in ("fp32", "bf16", "best") if mode in modes_here()]
NEGLIGIBLE, TOLERABLE = 0.01, 0.10  # of what TRL's trainer learnt
_STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}  # by seeds

Curves = dict[str, list[float]]


def main() -> None:
    """Train, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, choices=_STUDENT, help="number of seeds (default 5)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="trainings at a time, a thread each")
    arguments = parser.parse_args()
    started = time.perf_counter()
    seeds = range(arguments.seeds)
    jobs = [(task, mode, seed) for seed in seeds for mode in (STOCK, *OURS) for task in TASKS]
    curves = dict(zip(jobs, trained(jobs, arguments.processes), strict=True))
    results = {task: compare(task, curves, seeds) for task in TASKS}
    minutes = round((time.perf_counter() - started) / 60, 1)
    show(results)
    kept = {"machine": describe(), "date": date.today().isoformat(), "minutes": minutes, "rule": rule(), **results}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    print(f"{minutes} minutes; kept in {RESULTS}")


def trained(jobs: Sequence[tuple[str, str, int]], processes: int) -> Iterable[Curves]:
    """Run trainings side by side; yields their curves in the order of the jobs."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_prepare) as pool:
        running = [pool.submit(learn, *job) for job in jobs]
        for number, (job, future) in enumerate(zip(jobs, running, strict=True), 1):
            yield (curves := future.result())
            print(f"{number}/{len(jobs)}", *job, f"{curves['reward'][0]:.3f} -> {curves['reward'][-1]:.3f}", flush=True)


def _prepare() -> None:
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()  # TRL's trainer collects garbage twice an iteration, and would go through all libraries


def learn(task: str, mode: str, seed: int, iterations: int | None = None) -> Curves:
    """Train once, and return what each iteration got."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        records = train(MODES[mode], TASKS[task].roles(seed), TASKS[task].all_options(seed, iterations))
    return {name: [round(record[name], 5) for record in records] for name in ("reward", "score", "kl")}


def compare(task: str, curves: dict[tuple[str, str, int], Curves], seeds: Sequence[int]) -> dict[str, Any]:
    """Mean curves and final rewards of every mode, and how ours differ from TRL's."""
    modes: dict[str, Any] = {}
    for mode in (STOCK, *OURS):
        own = [curves[task, mode, seed] for seed in seeds]
        finals = [statistics.mean(one["reward"][-TASKS[task].last :]) for one in own]
        modes[mode] = {"final": finals, "curves": {name: mean_curve([one[name] for one in own]) for name in own[0]}}
    stock = modes[STOCK]["final"]
    gain = statistics.mean(stock) - modes[STOCK]["curves"]["reward"][0]
    for mode in OURS:
        differences = [ours - theirs for ours, theirs in zip(modes[mode]["final"], stock, strict=True)]
        middle, half = interval(differences)
        modes[mode] |= {
            "difference": middle,
            "interval": [middle - half, middle + half],
            "verdict": verdict(middle, half, gain),
        }
    return {"learnt_by_trl": gain, "last_iterations": TASKS[task].last, "modes": modes}


def mean_curve(curves: Sequence[Sequence[float]]) -> list[float]:
    """Mean over seeds, iteration by iteration."""
    return [round(statistics.mean(values), 5) for values in zip(*curves, strict=True)]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95% interval, by Student's t."""
    return statistics.mean(values), _STUDENT[len(values)] * statistics.stdev(values) / math.sqrt(len(values))


def verdict(middle: float, half: float, gain: float) -> str:
    """Apply the rule."""
    if middle + half < 0 and middle < -NEGLIGIBLE * gain:
        return "worse"
    return "not worse" if middle - half >= -TOLERABLE * gain else "undecided"


def rule() -> str:
    """Return the rule, as it stands above."""
    return " ".join((__doc__ or "").partition("The rule: ")[2].split())


def show(results: dict[str, dict[str, Any]]) -> None:
    """Print one table for each task."""
    for task, result in results.items():
        last = result["last_iterations"]
        title = f"{task}: mean reward of the last {last} iterations; TRL's trainer learnt {result['learnt_by_trl']:.3f}"
        table = Table("trainer", "first", "last", "of the seeds", "difference", "95% interval", "verdict", title=title)
        for mode, row in result["modes"].items():
            judged = ["", "", ""]
            if "verdict" in row:
                low, high = row["interval"]
                judged = [f"{row['difference']:+.4f}", f"{low:+.4f} to {high:+.4f}", row["verdict"]]
            finals = [f"{final:.3f}" for final in sorted(row["final"])]
            first, reached = row["curves"]["reward"][0], statistics.mean(row["final"])
            table.add_row(mode, f"{first:.3f}", f"{reached:.4f}", " ".join(finals), *judged)
        Console(width=120).print(table)


if __name__ == "__main__":
    main()
