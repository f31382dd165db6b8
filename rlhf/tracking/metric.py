"""What is known of one logged quantity. The quantities themselves stand in `metrics.py`."""

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["Metric"]


@dataclass(frozen=True)
class Metric:
    """One logged quantity.

    Attributes:
        meaning: What is measured, over what.
        unit: The unit; "1" for a plain number, "share" for a fraction between 0 and 1.
        healthy: Lowest and highest value of a healthy run, in that unit; None where that side has no limit.
        remedy: What to do outside the healthy range.
        best: Which end is better; W&B's summary shows that value beside the last one. None: neither.
        name: `stage/quantity`; a trailing `<name>` stands for anything.
    """

    meaning: str
    unit: str
    healthy: tuple[float | None, float | None] = (None, None)
    remedy: str = ""
    best: Literal["max", "min"] | None = None
    name: str = ""

    def is_healthy(self, value: float) -> bool:
        """Whether a value is finite and lies in the healthy range, its ends included."""
        low, high = self.healthy
        return math.isfinite(value) and (low is None or value >= low) and (high is None or value <= high)

    @property
    def range_text(self) -> str:
        """The healthy range in words; empty where there is none."""
        low, high = self.healthy
        if low is not None and high is not None:
            return f"{low:g}" if low == high else f"{low:g} to {high:g}"
        if low is not None:
            return f"at least {low:g}"
        return "" if high is None else f"at most {high:g}"
