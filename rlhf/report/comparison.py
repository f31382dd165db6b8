"""The comparison of two policies for the page: the verdict in one sentence, and the rows of the table.

Numbers are taken as they stand in evaluate.json: nothing is evaluated here.
"""

import math
from dataclasses import dataclass
from typing import Any

from rlhf.tracking.metrics import find
from rlhf.tracking.text import decimals_for, signed

__all__ = ["Bar", "Row", "explain", "rows_of", "verdict"]

_ROW_NAMES = {"kl": "KL", "distinct_2": "Distinct-2"}


@dataclass(frozen=True)
class Bar:
    """The interval as a drawing of width 120: horizontal places of its ends and of the difference."""

    low: float
    middle: float
    high: float
    excludes_zero: bool


@dataclass(frozen=True)
class Row:
    """One line of the before/after table."""

    name: str
    meaning: str
    unit: str
    values: list[float | None]
    difference: float | None
    interval: tuple[float, float] | None
    decimals: int
    bar: Bar | None


def verdict(evaluation: dict[str, Any]) -> str:
    """The result in a sentence or two; empty without a comparison of two policies."""
    score = (evaluation.get("metrics") or {}).get("score", {})
    if score.get("difference") is None or not score.get("interval"):
        return ""
    low, high = score["interval"]
    between = f"95% interval {signed(low)} to {signed(high)}"
    if low <= 0 <= high:
        between += ", which includes 0: no difference is shown"
    return (
        f"On {evaluation.get('prompts', '?')} held-out prompts the policy after PPO scores "
        f"{signed(score['difference'])} against the one before ({between}).{_wins(evaluation.get('win_rate') or {})}"
    )


def _wins(win_rate: dict[str, Any]) -> str:
    value, interval = win_rate.get("value"), win_rate.get("interval")
    if value is None:
        return ""
    between = f", 95% interval {100 * interval[0]:.0f}% to {100 * interval[1]:.0f}%" if interval else ""
    return f" Its response is the higher scored one on {100 * value:.0f}% of them (ties count half{between})."


def rows_of(evaluation: dict[str, Any]) -> list[Row]:
    """A row for each quantity of evaluate.json."""
    rows = []
    for name, entry in (evaluation.get("metrics") or {}).items():
        meaning, unit = explain(f"evaluate/{name}")
        values = [entry.get(policy) for policy in evaluation.get("policies", [])]
        interval = tuple(entry["interval"]) if entry.get("interval") else None
        rows.append(
            Row(
                name=_ROW_NAMES.get(name, name.removeprefix("components/").replace("_", " ").capitalize()),
                meaning=meaning,
                unit="" if unit in name else unit,
                values=values,
                difference=entry.get("difference"),
                interval=interval,
                decimals=decimals_for([*values, *(interval or ())]),
                bar=_bar(entry.get("difference"), interval),
            )
        )
    return rows


def explain(name: str) -> tuple[str, str]:
    """Meaning and unit of a metric, empty for one that this version does not know or that has no unit."""
    metric = find(name)
    return (metric.meaning, "" if metric.unit == "1" else metric.unit) if metric else ("", "")


def _bar(difference: float | None, interval: tuple[float, float] | None) -> Bar | None:
    """Each row has its own scale: 0 stands in the middle, the farther end of the interval at an edge."""
    if difference is None or interval is None or not all(map(math.isfinite, (difference, *interval))):
        return None
    low, high = interval
    scale = max(abs(low), abs(high), abs(difference)) or 1.0
    low_x, x, high_x = (60 + 54 * value / scale for value in (low, difference, high))
    return Bar(low_x, x, high_x, excludes_zero=not low <= 0 <= high)
