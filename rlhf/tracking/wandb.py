"""Weights & Biases: the only module that imports `wandb`.

Each stage is a W&B run of its own: its job type is the stage, its group the run folder, its id stays when the stage is
resumed (`wandb_runs.py`), and models and data join the stages as artifacts. Offline (the default) nothing leaves the
machine and nothing is asked; `wandb sync RUN_DIR/wandb/offline-run-*` uploads later. Where the service does not answer,
a run that is to be online goes on offline. Metrics are drawn over their stage's own step (`ppo/step`).
"""

import logging
import os
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import wandb

from rlhf.tracking.metrics import METRICS
from rlhf.tracking.pictures import histograms, token_page
from rlhf.tracking.rollout_schema import NESTED_COLUMNS
from rlhf.tracking.sink import Artifact, Sink
from rlhf.tracking.wandb_runs import StageRun
from rlhf.tracking.wandb_settings import WandbSettings

__all__ = ["WandbSink"]

logger = logging.getLogger(__name__)

_ANSWER_SECONDS = 4.0  # for the service to answer at all, before a run goes on offline
_START_SECONDS = 5.0  # for it to accept the run
_FINISH_SECONDS = 300.0  # for pending uploads at the end of a stage; what is left lies in the run folder
_KEPT_IN_RUN_FOLDER = {"WANDB_CACHE_DIR": "cache", "WANDB_DATA_DIR": "data", "WANDB_ARTIFACT_DIR": "artifacts"}


class WandbSink(Sink):
    """One stage's W&B run.

    W&B's internal step grows by 2 with each call of `log` and with each session, and is odd for the tables after a
    call. So it grows across resumed sessions without a counter of its own on disk, and no two rows share a step.

    Args:
        run_dir: The run folder.
        settings: How W&B is used; mode "offline" or "online".
        run_config: The resolved configuration, shown by W&B.
        stage: Prefix of the metrics that will be logged.
        identity: The run that the stage writes to.
        calls_so_far: Calls of `log` by earlier sessions.
        rows_per_table: Most rows in a table of rollouts.
    """

    def __init__(
        self,
        run_dir: Path,
        settings: WandbSettings,
        run_config: Mapping[str, Any],
        stage: str,
        identity: StageRun,
        calls_so_far: int,
        rows_per_table: int,
    ) -> None:
        self._stage, self._identity, self._rows_per_table = stage, identity, rows_per_table
        self._artifacts = settings.artifacts
        self._group = settings.group
        with _files_in(run_dir / "wandb"):
            self._run = _start(run_dir, settings, run_config, stage, identity)
        self._run_dir = run_dir
        self._step = max(2 * (calls_so_far + len(identity.sessions)), int(self._run.step) + 1)
        self._define_metrics()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Adds one point to each metric's curve; points that an earlier session sent are left out."""
        sent = self._identity.sent
        new = {name: value for name, value in metrics.items() if step > sent.get(name, -1)}
        if new:
            self._step += 2 - self._step % 2
            self._run.log({**new, f"{self._stage}/step": step}, step=self._step)

    def log_rollouts(self, rows: Sequence[Mapping[str, Any]], iteration: int) -> None:
        """Adds a table under the iteration's own key, a page of responses token by token, and histograms."""
        shown = [{k: v for k, v in row.items() if k not in NESTED_COLUMNS} for row in rows[: self._rows_per_table]]
        media: dict[str, Any] = {f"rollouts/iteration_{iteration:06d}": _table(shown)} if shown else {}
        page = token_page(rows, iteration)
        if page is not None:
            media[f"{self._stage}/token_view"] = wandb.Html(page, inject=False)
        for name, values in histograms(rows).items():
            media[f"{self._stage}/histograms/{name}"] = wandb.Histogram(values)
        self._log_media(media, iteration)

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Logs a whole table at once; it replaces an earlier one of that name."""
        if rows:
            self._log_media({name: _table(rows)})

    def log_artifacts(self, read: Sequence[Artifact], made: Sequence[Artifact]) -> None:
        """Declares what the stage read and made; W&B draws the lineage of models and data from it."""
        if self._artifacts == "none":
            return
        with _files_in(self._run_dir / "wandb"):
            for entry in read:
                # W&B's `use_artifact` refuses offline runs; this is what it calls for a new artifact otherwise.
                self._run._log_artifact(self._artifact(entry), is_user_created=True, use_after_commit=True)
            for entry in made:
                self._run.log_artifact(self._artifact(entry))

    def close(self, failed: bool = False) -> None:
        """Ends this session of the run; W&B marks a failed one."""
        try:
            with _files_in(self._run_dir / "wandb"):
                self._run.finish(exit_code=1 if failed else 0)
        except Exception:
            with suppress(Exception):
                wandb.teardown()  # else a dead process of W&B's would be asked again by the next stage, and at the end
            raise

    def _define_metrics(self) -> None:
        """Names the x-axis and what the summary keeps, and explains every metric of the stage."""
        axis = f"{self._stage}/step"
        self._run.define_metric(axis, hidden=True)
        self._run.define_metric(f"{self._stage}/*", step_metric=axis)
        own = [metric for name, metric in METRICS.items() if name.startswith(f"{self._stage}/")]
        for metric in own:
            if metric.best is not None:
                self._run.define_metric(metric.name, step_metric=axis, summary=f"{metric.best},last")
        if not self._identity.sent:
            columns = ["metric", "meaning", "unit", "healthy", "outside", "summary"]
            rows = [[m.name, m.meaning, m.unit, m.range_text, m.remedy, m.best or "last"] for m in own]
            self._log_media({"metrics": wandb.Table(columns=columns, data=rows)})

    def _log_media(self, media: Mapping[str, Any], step: int | None = None) -> None:
        """Media stand in a row of W&B's history of their own, which the next point does not share."""
        if media:
            self._step += 1 - self._step % 2
            own_step = {} if step is None else {f"{self._stage}/step": step}
            with _files_in(self._run_dir / "wandb"):
                self._run.log({**media, **own_step}, step=self._step)

    def _artifact(self, entry: Artifact) -> Any:
        name = "".join(c if c.isalnum() or c in "-_." else "-" for c in f"{self._group}-{entry.name}")
        artifact = wandb.Artifact(name[:128], entry.kind, metadata={k: v for k, v in entry.metadata.items()})
        path = entry.path.resolve() if entry.path is not None and entry.path.exists() else None
        if path is None:
            with artifact.new_file("source.txt") as file:
                file.write(str(entry.metadata.get("source", entry.name)) + "\n")
        elif self._artifacts == "reference" and entry.kind != "report":
            for file in [path] if path.is_file() else sorted(path.rglob("*")):
                if file.is_file():
                    name = path.name if file == path else file.relative_to(path).as_posix()
                    artifact.add_reference(file.as_uri(), name=name)
        elif path.is_dir():
            artifact.add_dir(str(path), policy="immutable", skip_cache=True)
        else:
            artifact.add_file(str(path), policy="immutable", skip_cache=True)
        return artifact


def _table(rows: Sequence[Mapping[str, Any]]) -> Any:
    columns = list(rows[0])
    data = [[row.get(column) for column in columns] for row in rows]
    # Mixed types are allowed: a table of anything must not end a run because one cell is an int, another a float.
    return wandb.Table(columns=columns, data=data, allow_mixed_types=True)


@contextmanager
def _files_in(folder: Path) -> Iterator[None]:
    """Lets W&B keep caches and staged files in a folder of the run, not in a home that may be unwritable."""
    own = {name: str(folder / part) for name, part in _KEPT_IN_RUN_FOLDER.items() if name not in os.environ}
    os.environ.update(own)
    try:
        yield
    finally:
        for name in own:
            del os.environ[name]


def _start(run_dir: Path, settings: WandbSettings, run_config: Mapping[str, Any], stage: str, run: StageRun) -> Any:
    """Starts or continues the run, offline if it cannot be online; never asks for anything."""
    for note in settings.notes:
        logger.warning("W&B: %s", note)
    if settings.mode == "online":
        why = _why_not_online()
        if why is None:
            try:
                return _init("online", run_dir, settings, run_config, stage, run)
            except (wandb.Error, OSError) as error:
                why = str(error).strip().splitlines()[0]
                wandb.teardown()  # its process still holds the run's id
        folder = run_dir / "wandb"
        logger.warning("W&B goes on offline: %s. Upload later: wandb sync %s/offline-run-*", why, folder)
    return _init("offline", run_dir, settings, run_config, stage, run)


def _why_not_online() -> str | None:
    """A reason why the service cannot be used, found within seconds; None if it can."""
    url = str(wandb.setup(wandb.Settings(silent=True)).settings.base_url)
    found: list[str] = [f"{url} does not answer within {_ANSWER_SECONDS:g} s"]
    thread = threading.Thread(target=_ask, args=(url, found), daemon=True)  # looking a name up may take minutes
    thread.start()
    thread.join(_ANSWER_SECONDS)
    if found:
        return found[-1]
    if not wandb.login(prompt=False, verify=False):
        return "there is no API key (run `wandb login`, or set WANDB_API_KEY)"
    return None


def _ask(url: str, found: list[str]) -> None:
    """Empties `found` if anybody answers at all, whatever they say."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        pass
    except OSError as error:
        reason = getattr(error, "reason", error)
        if not isinstance(reason, ssl.SSLError):  # W&B may know certificates that Python does not
            found.append(f"{url} cannot be reached ({reason})")
            return
    found.clear()


def _init(
    mode: Literal["online", "offline"],
    run_dir: Path,
    settings: WandbSettings,
    run_config: Mapping[str, Any],
    stage: str,
    run: StageRun,
) -> Any:
    own: dict[str, Any] = {"silent": True, "console": "off"}  # capturing the console would double the progress bar
    limits = {"init_timeout": _START_SECONDS, "finish_timeout": _FINISH_SECONDS}
    known = wandb.Settings.model_fields
    own |= {key: value for key, value in limits.items() if key in known and f"WANDB_{key.upper()}" not in os.environ}
    config = {**run_config, "stage": stage, "run_folder": run_dir.name}
    if run.previous is not None:
        config["previous_run"] = run.previous
    return wandb.init(
        dir=run_dir,
        id=run.id,
        name=f"{settings.name} {stage}",
        project=settings.project,
        entity=settings.entity,
        group=settings.group,
        job_type=stage,
        tags=[*settings.tags, *(["rerun"] if run.previous else [])],
        notes=None if run.previous is None else f"The same stage with other inputs is run {run.previous}.",
        config=config,
        mode=mode,
        resume="allow",
        reinit="create_new",  # a run that the surrounding program has open is not ours to end or to write to
        allow_val_change=True,
        settings=wandb.Settings(**own),
    )
