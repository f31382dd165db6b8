"""One picture of a run for a README: the score during PPO, and one prompt answered before and after.

The example is the held-out prompt with the median gain in score, not the best one.
"""

import textwrap
import warnings
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from rlhf.errors import StageError
from rlhf.report.curves import Series, smooth
from rlhf.results.run import load_run
from rlhf.tracking.text import as_text, signed

__all__ = ["save_curve_picture", "typical_sample"]

_LINE_CHARACTERS = 74
_MOST_LINES = 8
_INK, _GREY = "#1c2430", "#5b6770"
_BEFORE, _AFTER = "#d9722b", "#1f5fbf"


def save_curve_picture(run_dir: str | Path, path: str | Path) -> Path:
    """Draws the picture of a run.

    Args:
        run_dir: The run folder.
        path: Where to write; the suffix (.png or .svg) says as what.

    Raises:
        StageError: The run has neither a PPO curve nor evaluated samples, or the suffix is another one.
    """
    target = Path(path)
    if target.suffix not in (".png", ".svg"):
        raise StageError(f"a picture is written as .png or .svg, not as {target.suffix!r}")
    run = load_run(run_dir)
    score = run.series.get("ppo/score", [])
    sample = typical_sample(run.evaluation.get("samples", []))
    if len(score) < 2 and sample is None:
        raise StageError(f"{run_dir} has neither a PPO curve nor evaluated samples: run the ppo and evaluate stages")
    target.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"font.size": 10, "svg.hashsalt": "rlhf"}), warnings.catch_warnings():
        # Text in any language is allowed; where the font has no glyph a box is drawn, and that is all there is to say.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        _figure(score, sample).savefig(target, dpi=160, facecolor="white", metadata=_metadata(target))
    return target


def typical_sample(samples: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The sample with the median gain from before to after; None if no sample has both scores."""
    scored = [s for s in samples if s.get("before_score") is not None and s.get("after_score") is not None]
    scored.sort(key=_gain)
    return scored[(len(scored) - 1) // 2] if scored else None


def _gain(sample: dict[str, Any]) -> float:
    return float(sample["after_score"]) - float(sample["before_score"])


def _figure(score: list[tuple[int, float]], sample: dict[str, Any] | None) -> Figure:
    """One panel for each part that there is."""
    curve = len(score) > 1
    panels = int(curve) + int(sample is not None)
    figure = Figure(figsize=(10.5, 4.2) if panels == 2 else (6.0, 3.6), layout="constrained")
    grid = figure.add_gridspec(1, panels, width_ratios=[1.0, 1.25][:panels])
    if curve:
        _draw_score(figure.add_subplot(grid[0]), score)
    if sample is not None:
        _draw_sample(figure.add_subplot(grid[panels - 1]), sample)
    return figure


def _draw_score(axes: Any, score: list[tuple[int, float]]) -> None:
    _draw_curve(axes, score)
    axes.set_title("Score of the policy during PPO", loc="left", color=_INK, fontweight="bold")
    axes.set_xlabel("iteration", color=_GREY)
    axes.set_ylabel("mean score", color=_GREY)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c5ccd3")
    axes.tick_params(colors=_GREY)
    axes.grid(axis="y", color="#e7eaee")


def _draw_curve(axes: Any, points: Series) -> None:
    """A restless curve faintly, with its running mean on top."""
    steps, values = [step for step, _ in points], [value for _, value in points]
    means = smooth(points)
    if means is not None:
        axes.plot(steps, values, color=_AFTER, linewidth=0.8, alpha=0.3)
        axes.plot(steps, means, color=_AFTER, linewidth=1.8)
    else:
        axes.plot(steps, values, color=_AFTER, linewidth=1.6, marker="o", markersize=2.4)


def _draw_sample(axes: Any, sample: dict[str, Any]) -> None:
    axes.axis("off")
    blocks = [
        ("A held-out prompt (the one with the median gain)", sample["prompt"], _GREY),
        (f"Before PPO   score {signed(sample['before_score'], 2)}", sample["before"], _BEFORE),
        (f"After PPO   score {signed(sample['after_score'], 2)}", sample["after"], _AFTER),
    ]
    wrapped = [(title, _wrap(as_text(text)), colour) for title, text, colour in blocks]
    step = 1.0 / max(20, sum(len(lines) + 2 for _, lines, _ in wrapped))
    top = 1.0
    for title, lines, colour in wrapped:
        for row, (text, ink) in enumerate([(title, colour), *((line, _INK) for line in lines)]):
            style = {"fontweight": "bold"} if row == 0 else {}
            axes.text(
                0.02,
                top - row * step,
                text,
                color=ink,
                fontsize=9,
                va="top",
                transform=axes.transAxes,
                parse_math=False,
                **style,
            )
        top -= (len(lines) + 2) * step


def _wrap(text: str) -> list[str]:
    """Lines that fit the panel; a longer text ends in an ellipsis."""
    lines = [line for part in text.splitlines() for line in textwrap.wrap(part, _LINE_CHARACTERS)] or ["(empty)"]
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES - 1], lines[_MOST_LINES - 1][: _LINE_CHARACTERS - 2] + " …"]
    return lines


def _metadata(target: Path) -> dict[str, Any]:
    """No dates: the same run gives the same file."""
    return {"Date": None} if target.suffix == ".svg" else {"Software": None}
