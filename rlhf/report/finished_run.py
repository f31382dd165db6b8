"""What a finished or half-finished run folder holds, read for the report. Nothing here writes or computes results.

Every part may be missing (a run with only an SFT stage has no evaluate.json); what is there must be readable.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import StageError
from rlhf.files.run_folder import STAGES
from rlhf.tracking import rollouts
from rlhf.tracking.jsonl import read_records, read_series

__all__ = ["FinishedRun"]


@dataclass(frozen=True)
class FinishedRun:
    """The readable content of a run folder.

    Attributes:
        name: The folder's name.
        config: Text of config.yaml; empty if missing.
        manifest: Content of manifest.json; empty if missing.
        evaluation: Content of evaluate.json; empty if missing.
        series: Metric -> [(step, value), ...].
        seconds: Stage -> duration, for the stages that have run.
        rollouts: Iteration -> rows, of the first and the last iteration.
    """

    name: str
    config: str
    manifest: dict[str, Any]
    evaluation: dict[str, Any]
    series: dict[str, list[tuple[int, float]]]
    seconds: dict[str, float]
    rollouts: dict[int, list[dict[str, Any]]]

    @classmethod
    def read(cls, run_dir: str | Path) -> "FinishedRun":
        """Reads what is there.

        Raises:
            StageError: There is no such folder, nothing of a run is in it, or one of its files is broken.
        """
        folder = Path(run_dir)
        config = folder / "config.yaml"
        manifest = _read_json(folder / "manifest.json")
        series = read_series(folder)
        evaluation = _read_json(folder / "evaluate.json")
        if not (manifest or series or evaluation or config.is_file()):
            raise StageError(
                f"{folder} is not a run folder: it has no config.yaml, manifest.json, metrics.jsonl or evaluate.json. "
                "Give the folder that `rlhf run` wrote, runs/NAME"
            )
        return cls(
            name=folder.resolve().name,
            config=config.read_text(encoding="utf-8") if config.is_file() else "",
            manifest=manifest,
            evaluation=evaluation,
            series=series,
            seconds=_stage_seconds(folder, manifest),
            rollouts=_first_and_last(folder),
        )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StageError(f"{path} is not JSON ({error}); remove it and run its stage again") from None
    if not isinstance(content, dict):
        raise StageError(f"{path} holds a {type(content).__name__}, not an object; remove it and run its stage again")
    return content


def _stage_seconds(folder: Path, manifest: dict[str, Any]) -> dict[str, float]:
    """Durations by the manifest; for a stage that is not in it (yet), from its first to its last logged line."""
    entries = manifest.get("stages", manifest)
    times: dict[str, list[float]] = {}
    for record in read_records(folder):
        times.setdefault(record["stage"], []).append(record["time"])
    seconds = {}
    for stage in STAGES:
        entry = entries.get(stage) if isinstance(entries, dict) else None
        if isinstance(entry, dict) and isinstance(entry.get("seconds"), int | float):
            seconds[stage] = float(entry["seconds"])
        elif stage in times:
            seconds[stage] = max(times[stage]) - min(times[stage])
    return seconds


def _first_and_last(folder: Path) -> dict[int, list[dict[str, Any]]]:
    files = rollouts.list_files(folder)
    ends = sorted({min(files), max(files)}) if files else []
    return {iteration: rollouts.read(files[iteration]) for iteration in ends}
