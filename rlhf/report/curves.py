"""The curves of the page: which of them stand together, also of several runs. `page/curves.js` draws them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rlhf.tracking.metrics import find
from rlhf.tracking.text import number

__all__ = ["Chart", "Line", "charts_of", "running_mean", "smooth"]

Series = Sequence[tuple[int, float]]

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
    """One curve of a chart, as the legend names it.

    Attributes:
        name: Metric without its stage; with several runs, the run too.
        meaning: What is measured.
        unit: Its unit; empty for a plain number.
        colour: Which colour of the page's row of colours.
        run: 0 for the run of the page, 1 and more for those that are compared with it.
        faint: As logged, under its running mean.
        values: One for each step of the chart; None where there is none.
    """

    name: str
    meaning: str
    unit: str
    colour: int
    run: int
    faint: bool
    values: list[float | None]


@dataclass(frozen=True)
class Chart:
    """One picture with what the page writes around it."""

    title: str
    stage: str
    axis: str
    steps: list[int]
    lines: list[Line]

    def data(self) -> dict[str, Any]:
        """What the page's script draws."""
        return asdict(self)

    def meanings(self) -> list[tuple[str, str]]:
        """Meaning and unit of what it shows, each once."""
        return list(dict.fromkeys((line.meaning, line.unit) for line in self.lines))

    def summary(self) -> str:
        """What the picture shows, for those who cannot see it: first and last value of each line."""
        parts = []
        for line in self.lines:
            known = [value for value in line.values if value is not None]
            if known and not line.faint:
                parts.append(f"{line.name} from {number(known[0])} to {number(known[-1])}")
        return f"{self.title}, over {len(self.steps)} points by {self.axis}: {'; '.join(parts)}"


def charts_of(stage: str, runs: Mapping[str, Mapping[str, Series]]) -> tuple[list[Chart], list[Chart]]:
    """The charts of a stage: the well-known ones, and one for each remaining curve.

    Args:
        stage: "sft", "reward" or "ppo".
        runs: Run -> all its curves; the first run is the page's. Curves with fewer than two points are left out.
    """
    curves = {
        run: {name: points for name, points in series.items() if name.startswith(f"{stage}/") and len(points) > 1}
        for run, series in runs.items()
    }
    known = list(dict.fromkeys(name for series in curves.values() for name in series))
    main: list[Chart] = []
    used: set[str] = set()
    for title, wanted in _GROUPS.get(stage, {}).items():
        names = [name for want in wanted for name in known if name == want or (want[-1] == "/" and want in name)]
        if names:
            used.update(names)
            main.append(_chart(stage, title, names, curves))
    rest = sorted(name for name in known if name not in used)
    return main, [_chart(stage, name.removeprefix(f"{stage}/"), [name], curves) for name in rest]


def _chart(stage: str, title: str, names: Sequence[str], runs: Mapping[str, Mapping[str, Series]]) -> Chart:
    steps = sorted({step for series in runs.values() for name in names for step, _ in series.get(name, ())})
    lines: list[Line] = []
    for place, name in enumerate(names):
        metric = find(name)
        meaning, unit = (metric.meaning, "" if metric.unit == "1" else metric.unit) if metric else ("", "")
        for run, (run_name, series) in enumerate(runs.items()):
            points = series.get(name, ())
            if not points:
                continue
            label = name.removeprefix(f"{stage}/").removeprefix("components/")
            label = f"{label}, {run_name}" if len(runs) > 1 else label
            means = smooth(points) if len(runs) == 1 else None
            for faint, values in ((True, [v for _, v in points]), (False, means)) if means else ((False, None),):
                shown = [v for _, v in points] if values is None else values
                at = dict(zip((step for step, _ in points), shown, strict=True))
                text = f"{label}, as logged" if faint else label
                lines.append(Line(text, meaning, unit, place, run, faint, [at.get(step) for step in steps]))
    return Chart(title, stage, _AXIS.get(stage, "step"), steps, lines)


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
