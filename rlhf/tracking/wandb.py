"""Weights & Biases: the only module that imports `wandb`.

All stages of a run write to one W&B run, whose id stands in `run_dir/wandb_id`. Offline (the default) nothing leaves
the machine and nothing is asked; `wandb sync RUN_DIR/wandb` uploads all stages later, in order. Metrics are drawn
over their stage's own step (`ppo/step`), because W&B's internal step must grow through all stages.
"""

import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import wandb

from rlhf.errors import ConfigError

if TYPE_CHECKING:
    from rlhf.config.schema import WandbConfig

__all__ = ["WandbSink"]

ID_FILE_NAME = "wandb_id"


class WandbSink:
    """One stage's part of the W&B run.

    W&B's internal step is 2n for the n-th call of `log` in the life of the run folder and 2n + 1 for the tables after
    it, so it grows across stages and resumed sessions without a counter of its own on disk.

    Args:
        run_dir: The run folder.
        options: Section `tracking.wandb` with mode "offline" or "online".
        run_config: The resolved configuration, shown by W&B.
        stage: Prefix of the metrics that will be logged.
        calls_so_far: Calls of `log` by earlier sessions.

    Raises:
        ConfigError: Online, but W&B has no credentials or cannot be reached.
    """

    def __init__(
        self, run_dir: Path, options: "WandbConfig", run_config: Mapping[str, Any], stage: str, calls_so_far: int
    ) -> None:
        self._run = _start(run_dir, options, run_config)
        self._stage = stage
        self._step = max(2 * calls_so_far, int(self._run.step) + 1)
        self._growing: dict[str, Any] = {}
        self._run.define_metric(f"{stage}/step", hidden=True)
        self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Adds one point to each metric's curve."""
        self._step += 2 - self._step % 2
        self._run.log({**metrics, f"{self._stage}/step": step}, step=self._step)

    def append_to_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Appends rows to the run's table `name`; rows of earlier calls stay.

        The first call fixes the columns. W&B stores each call's rows as an increment of their own under one key
        (a plain table logged twice under one key would show only the last).
        """
        if not rows:
            return
        table = self._growing.get(name)
        if table is None:
            table = self._growing[name] = wandb.Table(columns=list(rows[0]), log_mode="INCREMENTAL")
        for row in rows:
            table.add_data(*(row.get(column) for column in table.columns))
        self._run.log({name: table}, step=self._table_step())

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Logs a whole table at once; it replaces an earlier one of that name."""
        if not rows:
            return
        columns = list(rows[0])
        data = [[row.get(column) for column in columns] for row in rows]
        # Mixed types are allowed: a table of anything must not end a run because one cell is an int, another a float.
        table = wandb.Table(columns=columns, data=data, allow_mixed_types=True)
        self._run.log({name: table}, step=self._table_step())

    def close(self, failed: bool = False) -> None:
        """Ends this session of the run; W&B marks a failed one."""
        self._run.finish(exit_code=1 if failed else 0)

    def _table_step(self) -> int:
        self._step += 1 - self._step % 2
        return self._step


def _start(run_dir: Path, options: "WandbConfig", run_config: Mapping[str, Any]) -> Any:
    """Starts or continues the run; never asks for anything."""
    if options.mode == "online" and not wandb.login(prompt=False, verify=False):
        raise ConfigError(
            "tracking.wandb.mode is online, but W&B has no API key: run `wandb login`, set WANDB_API_KEY, or choose "
            "tracking.wandb.mode=offline (upload later with `wandb sync`)"
        )
    try:
        return wandb.init(
            dir=run_dir,
            id=_run_id(run_dir),
            name=run_dir.name,
            project=options.project,
            entity=options.entity,
            group=options.group,
            tags=list(options.tags),
            config=dict(run_config),
            mode=options.mode,
            resume="allow",
            reinit="create_new",  # a run that the surrounding program has open is not ours to end or to write to
            allow_val_change=True,
            # Capturing the console would double the progress bar.
            settings=wandb.Settings(silent=True, console="off"),
        )
    except wandb.Error as error:
        raise ConfigError(
            f"tracking.wandb: W&B could not start: {error}. Way out: tracking.wandb.mode=offline or disabled"
        ) from error


def _run_id(run_dir: Path) -> str:
    """The id in the run folder, made by the first stage."""
    path = run_dir / ID_FILE_NAME
    if path.exists() and (known := path.read_text(encoding="utf-8").strip()):
        return known
    new = secrets.token_hex(4)
    path.write_text(new + "\n", encoding="utf-8")
    return new
