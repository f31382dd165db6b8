"""Curves as small inline SVG pictures for the report. Which curves stand together is decided here.

Words stay out of the pictures (the page sets titles, meanings and legends), so nothing that a user named is ever
parsed by the plotting library.
"""

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlhf.tracking.metrics import find

__all__ = ["COLOURS", "Chart", "Line", "charts_of", "draw", "running_mean", "smooth"]

Series = Sequence[tuple[int, float]]

COLOURS = ("#1f5fbf", "#d9722b", "#2b8a57", "#8a4fb0", "#b03a48", "#5b6770")

# Title -> metrics in one picture, in reading order. What a stage logs beyond these gets a picture of its own.
_GROUPS: dict[str, dict[str, tuple[str, ...]]] = {
    "sft": {
        "Loss": ("sft/loss", "sft/validation_loss"),
        "Perplexity": ("sft/perplexity",),
        "Token accuracy": ("sft/validation_token_accuracy",),
        "Learning rate": ("sft/learning_rate",),
        "Gradient norm": ("sft/gradient_norm",),
    },
    "reward": {
        "Loss": ("reward/loss", "reward/validation_loss"),
        "Accuracy": ("reward/accuracy", "reward/validation_accuracy"),
        "Margin": ("reward/margin", "reward/validation_margin"),
        "Learning rate": ("reward/learning_rate",),
        "Gradient norm": ("reward/gradient_norm",),
    },
    "ppo": {
        "Score": ("ppo/score", "ppo/reward"),
        "KL to the reference": ("ppo/kl",),
        "Reward components": ("ppo/components/",),
        "Entropy": ("ppo/entropy",),
        "Response length": ("ppo/response_tokens",),
        "Stopped by itself": ("ppo/stopped_share",),
        "Policy loss": ("ppo/loss/policy",),
        "Value loss": ("ppo/loss/value",),
        "Explained variance": ("ppo/explained_variance",),
        "KL of the update": ("ppo/approx_kl",),
        "Clipped": ("ppo/clip_fraction", "ppo/value_clip_fraction"),
        "KL coefficient": ("ppo/kl_coefficient",),
        "Time": ("ppo/seconds/rollout", "ppo/seconds/score", "ppo/seconds/update"),
    },
}
_AXIS = {"sft": "optimizer step", "reward": "optimizer step", "ppo": "iteration"}
_SMOOTH_FROM_POINTS = 30  # shorter curves are readable as they are


@dataclass(frozen=True)
class Line:
    """One curve of a chart, as the legend names it."""

    name: str
    meaning: str
    unit: str
    colour: str


@dataclass(frozen=True)
class Chart:
    """One picture with what the page writes around it."""

    title: str
    lines: list[Line]
    axis: str
    smoothed: bool
    svg: str


def charts_of(stage: str, series: Mapping[str, Series]) -> tuple[list[Chart], list[Chart]]:
    """The charts of a stage: the well-known ones, and one for each remaining curve.

    Args:
        stage: "sft", "reward" or "ppo".
        series: All curves of the run; those with fewer than two points are no curves and are left out.
    """
    curves = {name: points for name, points in series.items() if name.startswith(f"{stage}/") and len(points) > 1}
    main: list[Chart] = []
    used: set[str] = set()
    for title, wanted in _GROUPS.get(stage, {}).items():
        names = [name for want in wanted for name in curves if name == want or (want[-1] == "/" and want in name)]
        if names:
            used.update(names)
            main.append(_chart(stage, title, {name: curves[name] for name in names}))
    rest = [name for name in curves if name not in used]
    return main, [_chart(stage, name.removeprefix(f"{stage}/"), {name: curves[name]}) for name in sorted(rest)]


def _chart(stage: str, title: str, curves: Mapping[str, Series]) -> Chart:
    lines = []
    for number, name in enumerate(curves):
        metric = find(name)
        label = name.removeprefix(f"{stage}/").removeprefix("components/")
        meaning, unit = (metric.meaning, metric.unit) if metric else ("", "")
        lines.append(Line(label, meaning, unit, COLOURS[number % len(COLOURS)]))
    return Chart(
        title=title,
        lines=lines,
        axis=_AXIS.get(stage, "step"),
        smoothed=any(smooth(points) is not None for points in curves.values()),
        svg=_svg(list(curves.values())),
    )


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean over the values at most window // 2 before and after each; near the ends over what there is."""
    total = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    half = window // 2
    low = np.maximum(np.arange(len(values)) - half, 0)
    high = np.minimum(np.arange(len(values)) + half + 1, len(values))
    means: list[float] = ((total[high] - total[low]) / (high - low)).tolist()
    return means


def smooth(points: Series) -> list[float] | None:
    """The running mean of a long and restless curve; None for one that is readable as it is."""
    values = [value for _, value in points]
    if len(values) < _SMOOTH_FROM_POINTS:
        return None
    means = running_mean(values, max(5, len(values) // 15))
    height = np.ptp(values)
    restless = height > 0 and np.median(np.abs(np.subtract(values, means))) > 0.01 * height
    return means if restless else None


def draw(axes: Any, points: Series, colour: str) -> None:
    """Draws one curve on matplotlib axes; a restless one faintly, with its running mean on top.

    Args:
        axes: matplotlib axes.
        points: (step, value) by rising step.
        colour: Of the line.
    """
    steps, values = [step for step, _ in points], [value for _, value in points]
    means = smooth(points)
    if means is not None:
        axes.plot(steps, values, color=colour, linewidth=0.8, alpha=0.3)
        axes.plot(steps, means, color=colour, linewidth=1.8)
    else:
        dots = {"marker": "o", "markersize": 2.4} if len(points) < _SMOOTH_FROM_POINTS else {}
        axes.plot(steps, values, color=colour, linewidth=1.6, **dots)


def _svg(curves: Sequence[Series]) -> str:
    """The curves as an <svg> element that scales with the page."""
    style = {
        "svg.fonttype": "none",  # text stays text: small files, the page's font
        "svg.hashsalt": "rlhf",  # the same run gives the same file
        "font.size": 9,
        "axes.edgecolor": "#c5ccd3",
        "xtick.color": "#5b6770",
        "ytick.color": "#5b6770",
        "axes.formatter.useoffset": False,
        "path.simplify_threshold": 0.3,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.0, 2.1), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for points, colour in zip(curves, COLOURS * (1 + len(curves) // len(COLOURS)), strict=False):
            draw(axes, points, colour)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e7eaee", linewidth=0.8)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    return re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
