"""report.html: everything a run has to show, in one file that needs no network, no server and no script.

Read from the run folder alone, so it can be built again at any time, also of a run that is not finished; parts that
are missing are left out. Numbers are taken as they stand in the files: nothing is evaluated here.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rlhf.files.atomic import write_text
from rlhf.files.run_folder import STAGES
from rlhf.report.curves import Chart, charts_of
from rlhf.report.picture import save_curve_picture
from rlhf.results.run import Run, load_run
from rlhf.tracking.metrics import find
from rlhf.tracking.progress import format_seconds
from rlhf.tracking.text import as_text, decimals_for, number, signed

__all__ = ["build_report", "save_curve_picture"]

_TITLES = {"sft": "Supervised fine-tuning", "reward": "Reward model", "ppo": "PPO", "evaluate": "Evaluation"}
_POLICY_NAMES = {"before": "Before", "after": "After"}
_ROW_NAMES = {"kl": "KL", "distinct_2": "Distinct-2"}
# Stage -> curves whose first and last value tell in one line what the stage did.
_OUTCOMES = {
    "sft": ("sft/validation_loss", "sft/loss"),
    "reward": ("reward/validation_accuracy", "reward/accuracy", "reward/loss"),
    "ppo": ("ppo/score", "ppo/kl"),
    "evaluate": (),
}


def build_report(run_dir: str | Path) -> Path:
    """Writes `run_dir/report.html`.

    Args:
        run_dir: The run folder.

    Returns:
        The file's path.

    Raises:
        StageError: There is no such run folder, or one of its files is broken.
    """
    run = load_run(run_dir)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters.update(number=number, signed=signed, plain=as_text, duration=format_seconds, svg=Markup)
    html = environment.get_template("report.html.jinja").render(
        name=run.name,
        headline=_headline(run.evaluation),
        comparison=_comparison(run.evaluation),
        samples=run.evaluation.get("samples", []),
        policies=[(key, _POLICY_NAMES.get(key, key)) for key in run.evaluation.get("policies", [])],
        stages=_stages(run),
        total_seconds=sum(run.seconds.values()),
        charts=[section for stage in STAGES if (section := _curves(stage, run))],
        rollouts=_rollouts(run),
        config=run.config,
    )
    path = Path(run_dir) / "report.html"
    write_text(path, html)
    return path


def _headline(evaluation: dict[str, Any]) -> str:
    """The result in one sentence; empty without a comparison of two policies."""
    score = (evaluation.get("metrics") or {}).get("score", {})
    if score.get("difference") is None or not score.get("interval"):
        return ""
    low, high = score["interval"]
    verdict = f"95% interval {signed(low)} to {signed(high)}"
    if low <= 0 <= high:
        verdict += ", which includes 0: no difference is shown"
    return (
        f"On {evaluation.get('prompts', '?')} held-out prompts the policy after PPO scores "
        f"{signed(score['difference'])} against the one before ({verdict}).{_wins(evaluation.get('win_rate') or {})}"
    )


def _wins(win_rate: dict[str, Any]) -> str:
    value, interval = win_rate.get("value"), win_rate.get("interval")
    if value is None:
        return ""
    between = f", 95% interval {100 * interval[0]:.0f}% to {100 * interval[1]:.0f}%" if interval else ""
    return f" Its response is the higher scored one on {100 * value:.0f}% of them (ties count half{between})."


@dataclass(frozen=True)
class _Bar:
    """The interval as a drawing of width 120: horizontal places of its ends and of the difference."""

    low: float
    middle: float
    high: float
    excludes_zero: bool


@dataclass(frozen=True)
class _Row:
    """One line of the before/after table."""

    name: str
    meaning: str
    unit: str
    values: list[float | None]
    difference: float | None
    interval: tuple[float, float] | None
    decimals: int
    bar: _Bar | None


def _comparison(evaluation: dict[str, Any]) -> list[_Row]:
    rows = []
    for name, entry in (evaluation.get("metrics") or {}).items():
        meaning, unit = _explain(f"evaluate/{name}")
        values = [entry.get(policy) for policy in evaluation.get("policies", [])]
        interval = tuple(entry["interval"]) if entry.get("interval") else None
        rows.append(
            _Row(
                name=_ROW_NAMES.get(name, name.removeprefix("components/").replace("_", " ").capitalize()),
                meaning=meaning,
                unit="" if unit in name else unit,
                values=values,
                difference=entry.get("difference"),
                interval=interval,
                decimals=decimals_for([*values, *(interval or ())]),
                bar=_interval_bar(entry.get("difference"), interval),
            )
        )
    return rows


def _explain(name: str) -> tuple[str, str]:
    """Meaning and unit of a metric, empty for one that this version does not know or that has no unit."""
    metric = find(name)
    return (metric.meaning, "" if metric.unit == "1" else metric.unit) if metric else ("", "")


def _interval_bar(difference: float | None, interval: tuple[float, float] | None) -> _Bar | None:
    """Each row has its own scale: 0 stands in the middle, the farther end of the interval at an edge."""
    if difference is None or interval is None or not all(map(math.isfinite, (difference, *interval))):
        return None
    low, high = interval
    scale = max(abs(low), abs(high), abs(difference)) or 1.0
    low_x, x, high_x = (60 + 54 * value / scale for value in (low, difference, high))
    return _Bar(low_x, x, high_x, excludes_zero=not low <= 0 <= high)


def _stages(run: Run) -> list[dict[str, Any]]:
    """What ran, how long it took, and from where to where its main curve went."""
    return [
        {"title": _TITLES[stage], "seconds": run.seconds[stage], "outcome": _outcome(stage, run)}
        for stage in STAGES
        if stage in run.seconds
    ]


def _outcome(stage: str, run: Run) -> str:
    parts: list[str] = []
    for name in _OUTCOMES[stage]:
        points = run.series.get(name)
        if points and not (parts and stage != "ppo"):  # the first that there is; of PPO both
            label = name.removeprefix(f"{stage}/").replace("_", " ")
            first, last = number(points[0][1]), number(points[-1][1])
            parts.append(f"{label} {last}" if len(points) == 1 else f"{label} {first} \N{RIGHTWARDS ARROW} {last}")
    return ", ".join(parts)


@dataclass(frozen=True)
class _Section:
    """The curves of one stage, and what it logged only once."""

    title: str
    main: list[Chart]
    rest: list[Chart]
    single: list[tuple[str, float, str, str]]  # name, value, unit, meaning


def _curves(stage: str, run: Run) -> _Section | None:
    if stage == "evaluate":  # stands in the table
        return None
    main, rest = charts_of(stage, run.series)
    single = []
    for name, points in run.series.items():
        if name.startswith(f"{stage}/") and len(points) == 1:
            meaning, unit = _explain(name)
            single.append((name.removeprefix(f"{stage}/"), points[0][1], unit, meaning))
    return _Section(_TITLES[stage], main, rest, single) if main or rest or single else None


def _rollouts(run: Run) -> list[dict[str, Any]]:
    """Lowest, median and highest scored episode of the first and the last iteration."""
    shown = []
    for iteration in sorted({run.iterations[0], run.iterations[-1]}) if run.iterations else ():
        rows = run.rollout_table(iteration, ["index", "prompt", "response", "score", "kl", "length", "stop_reason"])
        known = [row for row in rows.to_pylist() if row["score"] is not None and math.isfinite(row["score"])]
        scored = sorted(known, key=lambda row: float(row["score"]))
        if scored:
            picks = {"lowest": scored[0], "median": scored[(len(scored) - 1) // 2], "highest": scored[-1]}
            shown.append({"iteration": iteration, "episodes": len(rows), "picks": picks})
    return shown
