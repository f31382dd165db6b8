"""A live progress bar for one stage, with the time that is left.

In a terminal it is one line that is redrawn; in a log file it is one plain line for every tenth of the way. It only
shows: metrics go to the tracker.
"""

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from rlhf.launch.rank import is_main_process

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Pace", "StageProgress", "format_seconds"]


class Pace:
    """How long the rest will take, if it goes on like the part done since the start.

    The mean over the whole stage is used, not the last seconds: one PPO iteration may take minutes. Work done before
    `start` (by an earlier session that is resumed) costs nothing and does not count.

    Args:
        clock: Seconds from any origin; a parameter for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.start(0, 0)

    def start(self, total: float, completed: float) -> None:
        """Begins to count; `completed` of `total` is already there."""
        self._total, self._first, self._completed = total, completed, completed
        self._started = self._updated = self._clock()

    def update(self, completed: float) -> None:
        """Notes how far the work is now."""
        self._completed = completed
        self._updated = self._clock()

    def seconds_elapsed(self) -> float:
        """Time since `start`."""
        return self._clock() - self._started

    def seconds_left(self) -> float | None:
        """Time until the end; None until anything is done. Counts down between updates."""
        done = self._completed - self._first
        if done <= 0:
            return None
        pace = (self._updated - self._started) / done  # seconds per unit of work
        return max(0.0, pace * (self._total - self._completed) - (self._clock() - self._updated))


class StageProgress:
    """The bar of one stage. A context manager; `start` must come before `update`.

    Args:
        stage: Shown in front of the bar.
        unit: What is counted, in the plural.
        console: Where to draw; default: standard output.
        enabled: Default: only in the first process.
        clock: Seconds from any origin; a parameter for tests.
    """

    def __init__(
        self,
        stage: str,
        unit: str = "steps",
        console: Console | None = None,
        enabled: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage, self._unit = stage, unit
        self._console = console or Console()
        self._enabled = is_main_process() if enabled is None else enabled
        self._pace = Pace(clock)
        self._total = 0.0
        self._completed = 0.0
        self._tenth = 0
        self._shown: dict[str, float] = {}
        self._note = ""
        self._bar: Progress | None = None

    def start(self, total: float, completed: float = 0) -> None:
        """Shows the bar. `completed`: what an earlier session had done."""
        self._total, self._completed = total, completed
        self._pace.start(total, completed)
        self._tenth = self._tenths_done()
        if self._enabled and self._console.is_terminal:
            self.close()
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=24),
                _RestColumn(self),
                console=self._console,
            )
            task = self._bar.add_task(self._stage, total=total)
            self._bar.update(task, completed=completed)
            self._bar.start()

    def update(self, completed: float, **shown: float) -> None:
        """Moves the bar.

        Args:
            completed: Work done so far; fractions of a unit are welcome when a unit takes long.
            shown: A few numbers to show beside it, for example `score=0.4`; they stay until replaced.
        """
        self._completed = completed
        self._shown.update(shown)
        self._pace.update(completed)
        if self._bar is not None:
            self._bar.update(self._bar.tasks[0].id, completed=completed)
        elif self._enabled and not self._console.is_terminal and self._tenths_done() > self._tenth:
            self._tenth = self._tenths_done()
            self._console.print(f"{self._stage}: {self.line()}", highlight=False, markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Says what is going on within a unit, for example "rollout"; empty text removes it."""
        self._note = text

    def line(self) -> str:
        """What stands behind the bar: done, total, numbers, time left."""
        parts = [f"{_number(self._completed)}/{_number(self._total)} {self._unit}"]
        parts += [f"{name} {value:.3g}" for name, value in self._shown.items()]
        if self._completed >= self._total:
            parts.append(f"took {format_seconds(self._pace.seconds_elapsed())}")
        else:
            left = self._pace.seconds_left()
            parts += [self._note] if self._note else []
            parts.append("time left unknown" if left is None else f"{format_seconds(left)} left")
        return "  ".join(parts)

    def close(self) -> None:
        """Leaves the bar as it is and gives the terminal back. Closing twice is harmless."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tenths_done(self) -> int:
        return int(10 * self._completed / self._total) if self._total else 0


class _RestColumn(ProgressColumn):
    """Draws `StageProgress.line`, anew at each redraw so that the time left counts down."""

    def __init__(self, progress: StageProgress) -> None:
        super().__init__()
        self._progress = progress

    def render(self, task: Task) -> Text:
        """The text behind the bar."""
        return Text(self._progress.line(), overflow="ellipsis", no_wrap=True)


def format_seconds(seconds: float) -> str:
    """Seconds as `0:07`, `12:34` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _number(value: float) -> str:
    """Whole numbers without a point."""
    return f"{value:.0f}" if value == int(value) else f"{value:.1f}"
