"""Signs of trouble: metrics that have left the healthy range which `metrics.py` gives them, and what to do about it.

The tracker lets a `Watch` see what it logs and prints its signs as warnings; the report asks `signs_of_trouble` about
a history. Nothing here stops a run.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf.tracking.metric import Metric
from rlhf.tracking.metrics import find
from rlhf.tracking.text import number

__all__ = ["PATIENCE", "Sign", "Watch", "signs_of_trouble"]

PATIENCE = 3  # points in a row outside the range; one alone may be chance


@dataclass(frozen=True)
class Sign:
    """One metric outside its healthy range.

    Attributes:
        name: Its logged name.
        value: The last value.
        step: The step of that value.
        points: How many values in a row lie outside.
        metric: What is known of it.
    """

    name: str
    value: float
    step: int
    points: int
    metric: Metric

    def __str__(self) -> str:
        """One sentence: value, range, remedy."""
        unit = "" if self.metric.unit == "1" else f" {self.metric.unit}"
        value = number(self.value) if math.isfinite(self.value) else str(self.value)
        healthy = f"; healthy is {self.metric.range_text}" if self.metric.range_text else ""
        since = f", {self.points} times in a row" if self.points > 1 else ""
        remedy = f" {self.metric.remedy}" if self.metric.remedy else ""
        return f"{self.name} is {value}{unit} at step {self.step}{since}{healthy}.{remedy}"


class Watch:
    """Sees one point after the other, and tells of each metric once when it gives a sign of trouble."""

    def __init__(self) -> None:
        self._outside: dict[str, Sign] = {}  # metrics whose latest values lie outside
        self._within: set[str] = set()  # metrics that were healthy at some time
        self._told: set[str] = set()

    def see(self, metrics: Mapping[str, float], step: int) -> list[Sign]:
        """Notes a point; returns what is new: values that are not finite, or outside `PATIENCE` times in a row."""
        new = []
        for name, value in metrics.items():
            metric = find(name)
            if metric is None or metric.is_healthy(value):
                self._outside.pop(name, None)
                self._within.add(name)
                continue
            before = self._outside.get(name)
            sign = Sign(name, value, step, 1 + (before.points if before else 0), metric)
            self._outside[name] = sign
            if sign.points >= PATIENCE or not math.isfinite(value):
                new.append(sign)
        return self._not_told(new)

    def end(self) -> list[Sign]:
        """What there is to tell besides, now that no more points come: metrics that were never healthy."""
        return self._not_told([sign for name, sign in self._outside.items() if name not in self._within])

    def outside(self) -> list[Sign]:
        """All that is outside now, for long enough or from the beginning on; told before or not."""
        return [
            sign
            for name, sign in self._outside.items()
            if sign.points >= PATIENCE or not math.isfinite(sign.value) or name not in self._within
        ]

    def _not_told(self, signs: Sequence[Sign]) -> list[Sign]:
        new = [sign for sign in signs if sign.name not in self._told]
        self._told |= {sign.name for sign in new}
        return new


def signs_of_trouble(series: Mapping[str, Sequence[tuple[int, float]]]) -> list[Sign]:
    """What a history ends with that is not healthy.

    Args:
        series: Metric name -> [(step, value), ...] by rising step, as `jsonl.read_series` returns it.

    Returns:
        One sign for each metric that lies outside its range in the last `PATIENCE` points, or in all of fewer.
    """
    watch = Watch()
    for name, points in series.items():
        for step, value in points:
            watch.see({name: value}, step)
    return watch.outside()
