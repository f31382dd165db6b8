"""What the terminal shows while a stage runs: a spinner while it loads, then a bar with the time that is left.

In a terminal it is one line that is redrawn; in a log file it is one plain line for every tenth of the way. It only
shows: metrics go to the tracker.
"""

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.text import Text

from rlhf.launch.rank import is_main_process
from rlhf.tracking import terminal
from rlhf.tracking.pace import Pace, format_seconds

if TYPE_CHECKING:
    from typing import Self

__all__ = ["Pace", "StageProgress", "format_seconds"]

_WIDE = 100  # columns from which on there is room for the bar itself


class StageProgress:
    """The line of one stage. A context manager; until `start` is called the stage is loading.

    Args:
        stage: Shown in front.
        unit: What is counted, in the plural.
        place: Where the stage stands, for example "stage 2 of 4".
        console: Where to draw; default: standard output.
        enabled: Default: only in the first process, and not where the terminal is to be quiet.
        clock: Seconds from any origin; a parameter for tests.
    """

    def __init__(
        self,
        stage: str,
        unit: str = "steps",
        place: str = "",
        console: Console | None = None,
        enabled: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stage, self._unit, self._place = stage, unit, place
        self._console = console or Console()
        self._enabled = is_main_process() and terminal.shows_progress() if enabled is None else enabled
        self._clock = clock
        self._pace = Pace(clock)
        self._total = 0.0
        self._completed = 0.0
        self._tenth = 0
        self._shown: dict[str, float] = {}
        self._note = ""
        self._tokens, self._tokens_since = 0, 0.0
        self._bar: Progress | None = None

    def load(self, what: str = "loading") -> None:
        """Shows a spinner: the work that is counted has not begun, or is over."""
        self.close()  # with its last state
        self._total = self._completed = 0.0
        self._shown, self._note = {}, what
        self._draw(None)

    def start(self, total: float, completed: float = 0, unit: str | None = None) -> None:
        """Shows the bar. `completed`: what an earlier session had done."""
        self.close()
        self._unit = unit or self._unit
        self._total, self._completed, self._note = total, completed, ""
        self._pace.start(total, completed)
        self._tenth = self._tenths_done()
        self._draw(total)

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
            self._console.print(f"{self._title()}: {self.line()}", highlight=False, markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Says what is going on within a unit, for example "rollout"; empty text removes it."""
        self._note = text
        self._tokens, self._tokens_since = 0, self._clock()

    def count_tokens(self, tokens: int) -> None:
        """Notes that so many more tokens have been worked on since the last `note`; their rate is shown beside it."""
        self._tokens += tokens

    def line(self) -> str:
        """What stands behind the bar: done, total, numbers, what is going on, time left."""
        if not self._total:
            return self._note
        parts = [f"{_number(self._completed)}/{_number(self._total)} {self._unit}"]
        parts += [f"{name} {value:.3g}" for name, value in self._shown.items()]
        if self._completed >= self._total:
            parts.append(f"took {format_seconds(self._pace.seconds_elapsed())}")
        else:
            parts += [self._going_on()] if self._note else []
            parts.append(_about(self._pace.seconds_left()))
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

    def _title(self) -> str:
        return f"{self._stage}, {self._place}" if self._place else self._stage

    def _going_on(self) -> str:
        seconds = self._clock() - self._tokens_since
        return f"{self._note} {self._tokens / seconds:.0f} tokens/s" if self._tokens and seconds > 0 else self._note

    def _draw(self, total: float | None) -> None:
        """Replaces what stands in the terminal: a spinner where `total` is None, else the bar."""
        if not (self._enabled and self._console.is_terminal):
            return
        front: ProgressColumn = SpinnerColumn() if total is None else BarColumn(bar_width=16)
        columns = [front] if total is None or self._console.width >= _WIDE else []
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            *columns,
            _RestColumn(self),
            console=self._console,
            transient=total is None,
        )
        task = self._bar.add_task(self._title(), total=total)
        self._bar.update(task, completed=self._completed)
        self._bar.start()

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


def _about(seconds: float | None) -> str:
    """How long it will take, no more exactly than it is known."""
    if seconds is None:
        return "time left unknown"
    if seconds < 60:
        return f"about {seconds:.0f} s left"
    return f"about {seconds / 60:.0f} min left" if seconds < 5400 else f"about {seconds / 3600:.1f} h left"


def _number(value: float) -> str:
    """Whole numbers without a point."""
    return f"{value:.0f}" if value == int(value) else f"{value:.1f}"
