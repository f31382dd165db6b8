"""The one door for everything that a run wants to show: metrics, rollouts, tables, artifacts.

A stage opens a `Tracker`, logs, and closes it; where things end up (metrics.jsonl and Parquet files of rollouts always,
TensorBoard and W&B as configured) is decided here. Each place is guarded: an error there is warned of once,
switches that place off and never ends the stage. The report is built from the run folder afterwards, by `report`. Only
the first process of a distributed run writes; the others get a `NullTracker`.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rlhf.launch.rank import is_main_process
from rlhf.tracking import terminal
from rlhf.tracking.jsonl import JsonlSink, finite_or_none
from rlhf.tracking.metrics import describe
from rlhf.tracking.progress import StageProgress
from rlhf.tracking.rollout_files import RolloutFiles
from rlhf.tracking.sink import Artifact, Guarded, Sink
from rlhf.tracking.tensorboard import TensorBoardSink
from rlhf.tracking.wandb_runs import open_run
from rlhf.tracking.wandb_settings import wandb_settings
from rlhf.tracking.watch import Sign, Watch

if TYPE_CHECKING:
    from typing import Self

    from rlhf.config.schema import TrackingConfig

__all__ = ["NullTracker", "Tracker"]

logger = logging.getLogger(__name__)


class Tracker:
    """Writes what one stage logs. Made by `Tracker.open`; a context manager.

    Args:
        sinks: Where it goes.
        progress: What the terminal shows of the stage.

    Attributes:
        progress: The same, for the stage to move.
    """

    def __init__(self, sinks: Sequence[Sink], progress: StageProgress) -> None:
        self._sinks = sinks
        self.progress = progress
        self._watch = Watch()
        self._failed = False
        self._closed = False

    @classmethod
    def open(
        cls,
        run_dir: str | Path,
        config: "TrackingConfig",
        run_config: Mapping[str, Any],
        stage: str,
        fingerprint: str = "",
        place: str = "",
    ) -> "Tracker":
        """Opens the run folder for one stage; continues what is there.

        Args:
            run_dir: The run folder; made if missing.
            config: Section `tracking` of the configuration.
            run_config: The whole resolved configuration as plain data, shown by W&B.
            stage: "sft", "reward", "ppo" or "evaluate".
            fingerprint: Hash of what the stage's result depends on. Another one than before starts a new W&B run.
            place: Where the stage stands among all, for the terminal.

        Raises:
            ConfigError: One of W&B's environment variables has a value that it cannot have.
        """
        if not is_main_process():
            return NullTracker(stage)
        folder = Path(run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        wandb = wandb_settings(config.wandb, os.environ, folder.name)
        progress = StageProgress(stage, place=place)
        progress.load()
        journal = Guarded("metrics.jsonl", lambda: JsonlSink(folder, stage))
        session = getattr(journal.sink, "session", 0)

        def open_wandb() -> Sink:  # imports the library
            from rlhf.tracking.wandb import WandbSink

            identity = open_run(folder, stage, fingerprint, session)
            return WandbSink(folder, wandb, run_config, stage, identity, session, config.rollout_rows_per_table)

        sinks: list[Sink] = [journal, Guarded("rollouts", lambda: RolloutFiles(folder))]
        if config.tensorboard:
            sinks.append(Guarded("TensorBoard", lambda: TensorBoardSink(folder, stage, run_config)))
        if wandb.mode != "disabled":
            sinks.append(Guarded("W&B", open_wandb))
        return cls(sinks, progress)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs one point of each metric's curve, and warns of metrics that have left their healthy range.

        Args:
            metrics: Names of `rlhf.tracking.metrics.METRICS` (or under one of its prefixes) -> numbers. NaN and
                infinities are allowed: they show that something could not be computed.
            step: Optimizer step or iteration of the stage, from 1. May repeat, must not go back within a session.

        Raises:
            ValueError: A name is not documented.
        """
        for name in metrics:
            describe(name)
        values = {name: float(value) for name, value in metrics.items()}
        for sink in self._sinks:
            sink.log(values, step)
        terminal.emit({"event": "metrics", "step": step, **{k: finite_or_none(v) for k, v in values.items()}})
        self._warn(self._watch.see(values, step))

    def log_rollouts(self, rows: Sequence[Mapping[str, Any]], iteration: int) -> None:
        """Keeps one iteration's episodes: all in a Parquet file, the first ones in W&B.

        The first call of a session discards the files of this and later iterations, which a resumed or repeated
        stage is about to make again.

        Args:
            rows: See `rlhf.tracking.rollouts.typed_rows`.
            iteration: From 1; also the file's number.

        Raises:
            ValueError: A row has an unknown column or a value of the wrong type.
        """
        from rlhf.tracking.rollouts import typed_rows

        typed = typed_rows(rows, iteration)
        for sink in self._sinks:
            sink.log_rollouts(typed, iteration)

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Shows a table in W&B (nowhere else: its content is expected to stand in a file of the run folder)."""
        for sink in self._sinks:
            sink.log_table(name, rows)

    def log_artifacts(self, read: Sequence[Artifact], made: Sequence[Artifact]) -> None:
        """Declares what the stage read and what it made, once that lies in its place."""
        for sink in self._sinks:
            sink.log_artifacts(read, made)

    def close(self) -> None:
        """Writes what is pending, everywhere. Closing twice is harmless."""
        if self._closed:
            return
        self._closed = True
        self.progress.close()
        self._warn(self._watch.end())
        for sink in self._sinks:
            sink.close(self._failed)

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._failed = kind is not None
        self.close()

    def _warn(self, signs: Sequence[Sign]) -> None:
        for sign in signs:
            logger.warning("%s", sign)
            terminal.emit({"event": "warning", "metric": sign.name, "text": str(sign)})


class NullTracker(Tracker):
    """Takes everything and writes nothing: what the other processes of a distributed run get."""

    def __init__(self, stage: str) -> None:
        super().__init__((), StageProgress(stage, enabled=False))

    def _warn(self, signs: Sequence[Sign]) -> None:
        """The first process says it."""
