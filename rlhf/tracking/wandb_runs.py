"""Which W&B run a stage writes to: `wandb_runs.json` in the run folder. W&B itself is not needed for it.

Each stage is a W&B run of its own. A stage that is resumed, or repeated with the same inputs, goes on in its run; with
other inputs it gets a new run that knows the id of the old one. Because the same inputs give the same numbers, points
that a run has already are not sent to it again.
"""

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from rlhf.files.atomic import write_text
from rlhf.tracking.jsonl import NOT_METRICS, parse_records

__all__ = ["FILE_NAME", "StageRun", "open_run"]

FILE_NAME = "wandb_runs.json"


@dataclass(frozen=True)
class StageRun:
    """One stage's W&B run.

    Attributes:
        id: Its id.
        fingerprint: Hash of the inputs of the stage that it shows.
        sessions: The sessions of metrics.jsonl that were written to it too.
        previous: Id of the run of this stage with other inputs, if there was one.
        sent: Metric name -> last step that the run has.
    """

    id: str
    fingerprint: str
    sessions: tuple[int, ...] = ()
    previous: str | None = None
    sent: Mapping[str, int] = field(default_factory=dict)


def open_run(run_dir: Path, stage: str, fingerprint: str, session: int) -> StageRun:
    """The run that a session of a stage writes to; remembers it.

    Args:
        run_dir: The run folder.
        stage: "sft", "reward", "ppo" or "evaluate".
        fingerprint: Hash of the stage's inputs.
        session: This session's number in metrics.jsonl.
    """
    path = run_dir / FILE_NAME
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    entry = known.get(stage)
    if entry is not None and entry["fingerprint"] == fingerprint:
        run = StageRun(entry["id"], fingerprint, tuple(entry["sessions"]), entry["previous"])
    else:
        run = StageRun(secrets.token_hex(4), fingerprint, previous=entry["id"] if entry else None)
    sent = _last_steps(run_dir, stage, run.sessions)
    run = replace(run, sessions=(*run.sessions, session))
    entry = {key: value for key, value in asdict(run).items() if key != "sent"}
    write_text(path, json.dumps({**known, stage: entry}, indent=2) + "\n")
    return replace(run, sent=sent)


def _last_steps(run_dir: Path, stage: str, sessions: tuple[int, ...]) -> dict[str, int]:
    """Metric -> last step that these sessions logged."""
    last: dict[str, int] = {}
    for record in parse_records(run_dir):
        if record["stage"] == stage and record.get("session") in sessions:
            for name in record.keys() - set(NOT_METRICS):
                last[name] = max(record["step"], last.get(name, record["step"]))
    return last
