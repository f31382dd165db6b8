"""metrics.jsonl: one line for each call of `Tracker.log`, always written; and how it is read back.

A line holds `stage`, `session` (how many lines there were when the stage was opened, so that sessions differ), `step`,
`time` (seconds since 1970) and the metrics under their own names. Lines are only ever appended, so a run that is killed
loses at most the line it was writing. A stage that is resumed or run again repeats steps; reading lets the later
session replace them.
"""

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf.tracking.sink import Sink

__all__ = ["FILE_NAME", "NOT_METRICS", "JsonlSink", "finite_or_none", "parse_records", "read_records", "read_series"]

FILE_NAME = "metrics.jsonl"
NOT_METRICS = ("stage", "step", "time", "session")

logger = logging.getLogger(__name__)


def finite_or_none(value: float) -> float | None:
    """Not-a-number and infinities have no form in JSON; they become null."""
    return value if math.isfinite(value) else None


class JsonlSink(Sink):
    """Appends one stage's metrics to `run_dir/metrics.jsonl`.

    Attributes:
        lines: Lines in the file, those of earlier stages included.
        session: This session's number: how many lines there were when it began.
    """

    def __init__(self, run_dir: Path, stage: str) -> None:
        path = run_dir / FILE_NAME
        before = path.read_bytes() if path.exists() else b""
        self._file = path.open("a", encoding="utf-8")
        if before and not before.endswith(b"\n"):  # a killed process left half a line: keep it apart from ours
            self._file.write("\n")
            before += b"\n"
        self.lines = self.session = before.count(b"\n")
        self._head = {"stage": stage, "session": self.session}

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Writes one line and hands it to the operating system before returning."""
        values = {name: finite_or_none(value) for name, value in metrics.items()}
        record = {**self._head, "step": step, "time": round(time.time(), 3), **values}
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        self.lines += 1

    def close(self, failed: bool = False) -> None:
        """Closes the file; how the stage ended is the manifest's to say."""
        self._file.close()


def read_records(run_dir: Path) -> list[dict[str, Any]]:
    """All records that still stand, in the order in which they were written.

    The first record of a session says from which step the stage goes on: records of the stage's earlier sessions from
    that step on no longer stand.

    Args:
        run_dir: The run folder; without a metrics.jsonl the result is empty.
    """
    standing: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for number, record in enumerate(parse_records(run_dir)):
        stage = standing.setdefault(record["stage"], [])
        if stage and record.get("session") != stage[-1][1].get("session"):
            stage[:] = [kept for kept in stage if kept[1]["step"] < record["step"]]
        stage.append((number, record))
    ordered = sorted((kept for stage in standing.values() for kept in stage), key=lambda kept: kept[0])
    return [record for _, record in ordered]


def parse_records(run_dir: Path) -> Iterator[dict[str, Any]]:
    """All records, those included that no longer stand, in the order in which they were written."""
    path = run_dir / FILE_NAME
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    for number, line in enumerate(text.splitlines(), start=1):
        record = _parse(line, number, path)
        if record is not None:
            yield record


def read_series(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves of a run: metric name -> [(step, value), ...] by rising step; nulls are left out."""
    series: dict[str, dict[int, float]] = {}
    for record in read_records(run_dir):
        for name, value in record.items():
            if name not in NOT_METRICS and value is not None:
                series.setdefault(name, {})[record["step"]] = value
    return {name: sorted(points.items()) for name, points in series.items()}


def _parse(line: str, number: int, path: Path) -> dict[str, Any] | None:
    """One line as a record; None for a line that a killed process left unfinished."""
    if not line.strip():
        return None
    try:
        record = json.loads(line)
    except json.JSONDecodeError:
        record = None
    if not (isinstance(record, dict) and isinstance(record.get("step"), int) and "stage" in record):
        logger.warning("%s line %d is not a whole record and is left out", path, number)
        return None
    return record
