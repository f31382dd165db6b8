"""What a sink is: a place where goes what a stage logs. And the guard around each, so that none ends a training.

The sinks themselves are in files of their own: metrics.jsonl, Parquet, TensorBoard, W&B.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Artifact", "Guarded", "Sink"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Artifact:
    """A file or folder that a stage read or made.

    Attributes:
        name: Unique within the run: "sft", "reward", "ppo", "ppo-data", "report".
        kind: "model", "dataset" or "report".
        path: The file or folder; None where it has another kind of name, as data of the Hub do.
        metadata: What else is known of it: fingerprint, source, rows.
    """

    name: str
    kind: str
    path: Path | None
    metadata: Mapping[str, Any]


class Sink:
    """A place where goes what a stage logs; whatever a sink has no place for, it leaves to the others."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Takes one point of each metric's curve."""

    def log_rollouts(self, rows: Sequence[Mapping[str, Any]], iteration: int) -> None:
        """Takes one iteration's episodes, as `rollouts.typed_rows` makes them."""

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Takes a whole table, which replaces an earlier one of that name."""

    def log_artifacts(self, read: Sequence[Artifact], made: Sequence[Artifact]) -> None:
        """Takes what the stage read and what it made of it."""

    def close(self, failed: bool = False) -> None:
        """Writes what is pending; `failed`: the stage ends by an error."""


class Guarded(Sink):
    """A sink whose first error is warned of and switches it off; training goes on without it.

    Args:
        name: What the warning calls it.
        make: Opens the sink; an error there counts too.
    """

    def __init__(self, name: str, make: Callable[[], Sink]) -> None:
        self._name = name
        self._sink: Sink | None = None
        self._try(lambda: setattr(self, "_sink", make()))

    @property
    def sink(self) -> Sink | None:
        """The sink itself; None once it is off."""
        return self._sink

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """See `Sink`."""
        self._tell(lambda sink: sink.log(metrics, step))

    def log_rollouts(self, rows: Sequence[Mapping[str, Any]], iteration: int) -> None:
        """See `Sink`."""
        self._tell(lambda sink: sink.log_rollouts(rows, iteration))

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """See `Sink`."""
        self._tell(lambda sink: sink.log_table(name, rows))

    def log_artifacts(self, read: Sequence[Artifact], made: Sequence[Artifact]) -> None:
        """See `Sink`."""
        self._tell(lambda sink: sink.log_artifacts(read, made))

    def close(self, failed: bool = False) -> None:
        """See `Sink`."""
        self._tell(lambda sink: sink.close(failed))
        self._sink = None

    def _tell(self, what: Callable[[Sink], None]) -> None:
        sink = self._sink
        if sink is not None:
            self._try(lambda: what(sink))

    def _try(self, what: Callable[[], None]) -> None:
        try:
            what()
        except Exception as error:  # whatever a tracker's library raises: the training is worth more than its pictures
            broken, self._sink = self._sink, None
            if broken is not None:
                with suppress(Exception):  # what it has already should not be lost
                    broken.close(failed=True)
            logger.warning(
                "%s is off for the rest of this stage: %s: %s. Training goes on.",
                self._name,
                type(error).__name__,
                str(error).strip() or "no message",
            )
