"""The sink that keeps every episode, as Parquet files. Their form is `rollouts.py`'s matter."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf.tracking.sink import Sink

__all__ = ["RolloutFiles"]

logger = logging.getLogger(__name__)


class RolloutFiles(Sink):
    """Writes one file an iteration to `run_dir/rollouts/`."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir
        self._first = True

    def log_rollouts(self, rows: Sequence[Mapping[str, Any]], iteration: int) -> None:
        """Writes the file; the first call removes the files of a past that is about to be made again."""
        from rlhf.tracking import rollouts  # pyarrow takes a moment, and only PPO needs it

        if self._first:
            again = [number for number in rollouts.list_files(self._run_dir) if number >= iteration]
            if again:
                logger.warning(
                    "rollouts of iterations %d to %d, of an earlier attempt, are replaced", again[0], again[-1]
                )
            rollouts.discard_from(self._run_dir, iteration)
            self._first = False
        rollouts.write(self._run_dir, rows, iteration)
