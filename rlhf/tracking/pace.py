"""How long the rest of a stage will take, and times as text for people."""

import time
from collections.abc import Callable

__all__ = ["Pace", "format_seconds"]


class Pace:
    """How long the rest will take, if it goes on like the part done since the first unit.

    The mean over the whole stage is used, not the last seconds: one PPO iteration may take minutes. The first update
    is left out as soon as there is a second one, because it compiles, fills caches and starts workers. Work done
    before `start` (by an earlier session that is resumed) costs nothing and does not count.

    Args:
        clock: Seconds from any origin; a parameter for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.start(0, 0)

    def start(self, total: float, completed: float) -> None:
        """Begins to count; `completed` of `total` is already there."""
        self._total, self._completed = total, completed
        self._started = self._updated = self._clock()
        self._base = (self._started, completed)  # from where on the pace is measured
        self._updates = 0

    def update(self, completed: float) -> None:
        """Notes how far the work is now."""
        if self._updates == 1 and completed > self._completed:
            self._base = (self._updated, self._completed)
        if completed > self._completed:
            self._updates += 1
        self._completed = completed
        self._updated = self._clock()

    def seconds_elapsed(self) -> float:
        """Time since `start`."""
        return self._clock() - self._started

    def seconds_left(self) -> float | None:
        """Time until the end; None until anything is done. Counts down between updates."""
        since, first = self._base
        done = self._completed - first
        if done <= 0:
            return None
        pace = (self._updated - since) / done  # seconds per unit of work
        return max(0.0, pace * (self._total - self._completed) - (self._clock() - self._updated))


def format_seconds(seconds: float) -> str:
    """Seconds as `0:07`, `12:34` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
