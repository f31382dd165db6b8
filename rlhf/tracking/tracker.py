"""The one door for everything that a run wants to show: metrics, rollouts, tables.

A stage opens a `Tracker`, logs, and closes it; where things end up (metrics.jsonl always, Parquet files of rollouts
always, TensorBoard and W&B as configured) is decided here. The report is built from those files afterwards, by
`report`. Only the first process of a distributed run writes; the others get a `NullTracker`.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from rlhf.launch.rank import is_main_process
from rlhf.tracking.jsonl import JsonlSink
from rlhf.tracking.metrics import describe
from rlhf.tracking.tensorboard import TensorBoardSink

if TYPE_CHECKING:
    from typing import Self

    from rlhf.config.schema import TrackingConfig
    from rlhf.tracking.wandb import WandbSink

__all__ = ["NullTracker", "Tracker"]


class Sink(Protocol):
    """A place where metrics go."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Takes one point of each metric's curve."""

    def close(self, failed: bool = False) -> None:
        """Writes what is pending; `failed`: the stage ends by an error."""


class Tracker:
    """Writes what one stage logs. Made by `Tracker.open`; a context manager.

    Args:
        run_dir: The run folder.
        sinks: Where metrics go.
        wandb: Where tables go, if W&B is used; also one of the sinks.
        rollout_rows_per_table: Most rows that W&B gets from each rollout; the Parquet file gets all.
    """

    def __init__(
        self, run_dir: Path, sinks: Sequence[Sink], wandb: "WandbSink | None", rollout_rows_per_table: int
    ) -> None:
        self._run_dir = run_dir
        self._sinks = sinks
        self._wandb = wandb
        self._rows_per_table = rollout_rows_per_table
        self._first_rollout = True
        self._failed = False
        self._closed = False

    @classmethod
    def open(
        cls, run_dir: str | Path, config: "TrackingConfig", run_config: Mapping[str, Any], stage: str
    ) -> "Tracker":
        """Opens the run folder for one stage; continues what is there.

        Args:
            run_dir: The run folder; made if missing.
            config: Section `tracking` of the configuration.
            run_config: The whole resolved configuration as plain data, shown by W&B.
            stage: "sft", "reward", "ppo" or "evaluate".

        Raises:
            ConfigError: W&B is to be used online and cannot be.
        """
        if not is_main_process():
            return NullTracker()
        folder = Path(run_dir)
        folder.mkdir(parents=True, exist_ok=True)
        jsonl = JsonlSink(folder, stage)
        sinks: list[Sink] = [jsonl]
        if config.tensorboard:
            sinks.append(TensorBoardSink(folder, stage))
        try:
            wandb = _wandb_sink(folder, config, run_config, stage, calls_so_far=jsonl.lines)
        except BaseException:
            jsonl.close()
            raise
        if wandb is not None:
            sinks.append(wandb)
        return cls(folder, sinks, wandb, config.rollout_rows_per_table)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Logs one point of each metric's curve.

        Args:
            metrics: Names of `rlhf.tracking.metrics.METRICS` (or under one of its prefixes) -> numbers. NaN and
                infinities are allowed: they show that something could not be computed.
            step: Optimizer step or iteration of the stage. May repeat, must not go back within a session.

        Raises:
            ValueError: A name is not documented.
        """
        for name in metrics:
            describe(name)
        values = {name: float(value) for name, value in metrics.items()}
        for sink in self._sinks:
            sink.log(values, step)

    def log_rollouts(self, rows: Sequence[Mapping[str, Any]], iteration: int) -> None:
        """Keeps one iteration's episodes: all in a Parquet file, the first ones in W&B's table "rollouts".

        The first call of a session discards the files of this and later iterations, which a resumed or repeated
        stage is about to make again.

        Args:
            rows: See `rlhf.tracking.rollouts.typed_rows`.
            iteration: From 1; also the file's number.

        Raises:
            ValueError: A row has an unknown column or a value of the wrong type.
        """
        from rlhf.tracking import rollouts
        from rlhf.tracking.rollout_schema import NESTED_COLUMNS

        typed = rollouts.typed_rows(rows, iteration)
        if self._first_rollout:
            rollouts.discard_from(self._run_dir, iteration)
            self._first_rollout = False
        rollouts.write(self._run_dir, typed, iteration)
        if self._wandb is not None:
            shown = [{k: v for k, v in row.items() if k not in NESTED_COLUMNS} for row in typed]
            self._wandb.append_to_table("rollouts", shown[: self._rows_per_table])

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Shows a table in W&B (nowhere else: its content is expected to stand in a file of the run folder)."""
        if self._wandb is not None:
            self._wandb.log_table(name, rows)

    def close(self) -> None:
        """Writes what is pending, everywhere, even if one of the places fails. Closing twice is harmless."""
        if self._closed:
            return
        self._closed = True
        with ExitStack() as stack:
            for sink in self._sinks:
                stack.callback(sink.close, self._failed)

    def __enter__(self) -> "Self":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._failed = kind is not None
        self.close()


class NullTracker(Tracker):
    """Takes everything and writes nothing: what the other processes of a distributed run get."""

    def __init__(self) -> None:
        super().__init__(Path(), sinks=(), wandb=None, rollout_rows_per_table=0)

    def log_rollouts(self, rows: Sequence[Mapping[str, Any]], iteration: int) -> None:
        """Writes nothing."""


def _wandb_sink(
    run_dir: Path, config: "TrackingConfig", run_config: Mapping[str, Any], stage: str, calls_so_far: int
) -> "WandbSink | None":
    """W&B as configured; disabled means that the library is not even imported."""
    if config.wandb.mode == "disabled":
        return None
    from rlhf.tracking.wandb import WandbSink

    return WandbSink(run_dir, config.wandb, run_config, stage, calls_so_far)
