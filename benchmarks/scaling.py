"""How the time of an iteration grows: `python -m benchmarks.scaling`.

Trains random Llamas with our trainer and changes one thing at a time: episodes of a batch, tokens of a response, size
of the model. Every point is the median of several iterations behind one that warms up. The longest responses are also
profiled. Writes benchmarks/results/scaling.json, docs/scaling.png and the figures in docs/scaling.md, which it prints.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from benchmarks.breakdown import KINDS, Seconds, breakdown
from benchmarks.cost import weights_of
from benchmarks.machine import describe
from benchmarks.shapes import Shape, build
from benchmarks.trainers import MODES, PHASES, shape_options, train
from rlhf.packing.packed import rounded_up

RESULTS = Path(__file__).parent / "results" / "scaling.json"
DOCUMENT = Path(__file__).parents[1] / "docs" / "scaling.md"
HEADING = "## Figures\n"  # what stands behind it in the document is written here
MODE = "fp32"
BASE = Shape(
    vocabulary=4096, episodes=16, response_tokens=32, epochs=2, minibatches=2, prompt_tokens=(8, 8), layers=4,
)  # fmt: skip
WIDTHS = ((64, 2), (128, 2), (192, 4), (256, 4), (384, 6), (512, 8))  # hidden size, layers
AXES = {
    "episodes": [replace(BASE, episodes=n) for n in (4, 8, 16, 32, 64, 128)],
    "response tokens": [replace(BASE, response_tokens=n) for n in (8, 16, 32, 64, 128, 256, 512)],
    "weights": [
        replace(BASE, hidden_size=width, intermediate_size=rounded_up(width * 8 // 3, 16), layers=layers)
        for width, layers in WIDTHS
    ],
}
LARGEST = 3  # points of an axis, from its end, to which the second slope is fitted
COLOURS = {"rollout": "#1f5fbf", "score": "#2b8a57", "update": "#d9722b", "iteration": "#444444"}

Point = dict[str, Any]


def main() -> None:
    """Measure, draw, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--draw", action="store_true", help="measure nothing: draw and print what was kept")
    arguments = parser.parse_args()
    if not arguments.draw:
        started = time.perf_counter()
        kept = {"machine": describe(), "date": date.today().isoformat(), "mode": MODE, "base": asdict(BASE)}
        kept["axes"] = {axis: [measure(axis, shape, arguments.repetitions) for shape in AXES[axis]] for axis in AXES}
        longest = AXES["response tokens"][-LARGEST:]
        kept["breakdown"] = {shape.response_tokens: breakdown(MODES[MODE], shape) for shape in longest}
        kept["minutes"] = round((time.perf_counter() - started) / 60, 1)
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    kept = json.loads(RESULTS.read_text())
    draw(kept["axes"], DOCUMENT.with_suffix(".png"))
    DOCUMENT.write_text(DOCUMENT.read_text("utf-8").partition(HEADING)[0] + figures(kept), "utf-8")
    print(figures(kept))


def measure(axis: str, shape: Shape, repetitions: int) -> Point:
    """Return one point: where it lies on its axis, and the seconds of every phase in every repetition."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        roles = build(shape, None)
        places = {"episodes": shape.episodes, "response tokens": shape.response_tokens}
        place = places.get(axis, sum(weights_of(roles.policy)))
        records = train(MODES[MODE], roles, shape_options(shape, repetitions + 1))[1:]
    seconds = {phase: [round(record[f"seconds/{phase}"], 5) for record in records] for phase in PHASES}
    seconds["iteration"] = [round(sum(phases), 5) for phases in zip(*seconds.values(), strict=True)]
    print(f"{axis} {place}: {statistics.median(seconds['iteration']):.2f} s", flush=True)
    return {"place": place, "seconds": seconds}


def medians(points: Sequence[Point], phase: str) -> list[float]:
    """Over repetitions."""
    return [statistics.median(point["seconds"][phase]) for point in points]


def slope(places: Sequence[float], seconds: Sequence[float]) -> float:
    """Fit seconds = c * place ** slope by least squares on logarithms."""
    return float(np.polyfit(np.log(places), np.log(seconds), 1)[0])


def draw(axes: dict[str, list[Point]], path: Path) -> None:
    """One panel an axis, both scales logarithmic."""
    figure = Figure(figsize=(12, 4), layout="constrained")
    for panel, (axis, points) in zip(figure.subplots(1, len(axes)), axes.items(), strict=True):
        for phase, colour in COLOURS.items():
            places = [point["place"] for point in points]
            seconds = medians(points, phase)
            end = slope(places[-LARGEST:], seconds[-LARGEST:])
            label = f"{phase}: {slope(places, seconds):.2f}, at the end {end:.2f}"
            panel.loglog(places, seconds, "o-", color=colour, markersize=4, label=label)
            for place, point in zip(places, points, strict=True):
                panel.plot([place] * 2, [f(point["seconds"][phase]) for f in (min, max)], color=colour, alpha=0.4)
        panel.set(xlabel=axis, ylabel="seconds an iteration")
        panel.grid(which="both", alpha=0.2)
        panel.legend(title="slope", fontsize=8)
    FigureCanvasAgg(figure).print_figure(path, dpi=100)


def figures(kept: dict[str, Any]) -> str:
    """The end of docs/scaling.md, from its heading on."""
    machine, base = kept["machine"], kept["base"]
    sizes = ("vocabulary", "layers", "hidden_size", "episodes", "response_tokens", "epochs", "minibatches")
    given = ", ".join(f"{name.replace('_', ' ')} {base[name]}" for name in sizes)
    measured = (
        f"Measured on {kept['date']} in {kept['minutes']:.0f} minutes: {machine['processor']}, {machine['threads']} of "
        f"{machine['cores']} cores used, torch {machine['torch']}, {kept['mode']}."
    )
    where = f"Seconds of an iteration, medians. Where the axis does not say otherwise: {given}."
    parts = [HEADING.strip(), measured, where, *axis_tables(kept["axes"])]
    parts += ["The profiler's seconds for the longest responses:", breakdown_table(kept["breakdown"])]
    return "\n\n".join(parts) + "\n"


def axis_tables(axes: dict[str, list[Point]]) -> list[str]:
    """One table for each axis."""
    return [
        table(
            axis, [point["place"] for point in points], {phase: medians(points, phase) for phase in COLOURS}, both=True
        )
        for axis, points in axes.items()
    ]


def breakdown_table(parts: dict[str, Seconds]) -> str:
    """Phases by kinds."""
    named = [(phase, kind) for phase in PHASES for kind in KINDS]
    columns = {f"{phase}: {kind}": [part[phase][kind] for part in parts.values()] for phase, kind in named}
    return table("response tokens", [int(length) for length in parts], columns, both=False)


def table(axis: str, places: Sequence[float], columns: dict[str, list[float]], *, both: bool) -> str:
    """One column for each of `columns`, one row for each place, and the slopes."""
    rows = [[axis, *columns], ["---"] * (len(columns) + 1)]
    for number, place in enumerate(places):
        rows.append([f"{place:,}", *(f"{seconds[number]:.3f}" for seconds in columns.values())])
    if both:
        rows.append(["slope", *(f"**{slope(places, seconds):.2f}**" for seconds in columns.values())])
    ends = [slope(places[-LARGEST:], seconds[-LARGEST:]) for seconds in columns.values()]
    rows.append([f"slope of the last {LARGEST}", *(f"**{end:.2f}**" for end in ends)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    main()
