"""Reads what W&B wrote offline, with W&B's own protocol buffers; the frame around them is LevelDB's log format."""

import json
import struct
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as pb

_BLOCK, _HEADER = 32768, 7


@dataclass
class OfflineRun:
    """One session of one W&B run.

    Attributes:
        run: The RunRecord: id, project, group, job type, tags, notes.
        config: The configuration.
        history: Rows of the history, in order.
        metrics: Name -> what define_metric said of it.
        artifacts: What the run read and made.
        exit_code: How it ended; None if it did not.
    """

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)
    exit_code: int | None = None

    def curve(self, name: str) -> list[tuple[float, float]]:
        """(stage's step, value) of a metric."""
        axis = f"{name.partition('/')[0]}/step"
        return [(row[axis], row[name]) for row in self.history if name in row]


def offline_runs(run_dir: Path) -> dict[str, list[OfflineRun]]:
    """Job type -> its sessions, in the order in which they were made."""
    found = defaultdict(list)
    for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns):
        one = read(path)
        if one.run is not None:  # a process that was killed at once wrote nothing
            found[one.run.job_type].append(one)
    return found


def read(path: Path) -> OfflineRun:
    """Everything in one `.wandb` file."""
    result = OfflineRun()
    for payload in _payloads(path.read_bytes()):
        record = pb.Record()
        record.ParseFromString(payload)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            result.run = record.run
            result.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif kind == "history":
            result.history.append(_row(record.history.item))
        elif kind == "metric":
            result.metrics[record.metric.name or record.metric.glob_name] = record.metric
        elif kind == "artifact":
            result.artifacts.append(record.artifact)
        elif kind == "request" and record.request.WhichOneof("request_type") == "log_artifact":
            result.artifacts.append(record.request.log_artifact.artifact)
        elif kind == "exit":
            result.exit_code = record.exit.exit_code
    return result


def _row(items: Any) -> dict[str, Any]:
    """A row of the history; tables, pages and histograms are dictionaries."""
    row: dict[str, Any] = {}
    for item in items:
        *outer, name = item.nested_key or [item.key]
        place = row.setdefault(outer[0], {}) if outer else row
        place[name] = json.loads(item.value_json)
    return row


def _payloads(content: bytes) -> list[bytes]:
    """The records of a LevelDB log; a record may be cut into fragments (types 2, 3, 4) at the ends of blocks."""
    assert content[:4] == b":W&B"
    position, parts, payloads = _HEADER, [], []
    while position + _HEADER <= len(content):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + _HEADER])
        parts.append(content[position + _HEADER : position + _HEADER + length])
        position += _HEADER + length
        if kind in (1, 4):
            payloads.append(b"".join(parts))
            parts = []
    return payloads
