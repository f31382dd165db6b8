"""manifest.json: for each finished stage what it read, made, found and took. Read and written by `pipeline.py`.

A stage is in the manifest if and only if its output is whole: its entry is removed before its output is replaced, and
written afterwards.
"""

import dataclasses
import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf.errors import StageError
from rlhf.files.atomic import write_text

_FORMAT = 1
_LIBRARIES = {"rlhf": "rlhf-trainer", "torch": "torch", "transformers": "transformers", "trl": "trl"}


@dataclass(frozen=True)
class StageRecord:
    """One finished stage.

    Attributes:
        fingerprint: Hash of `inputs`.
        inputs: Name -> value or hash of everything that the result depends on.
        outputs: File, relative to the run folder -> its size in bytes.
        results: What the stage returned.
        started: Time in UTC, ISO 8601.
        seconds: Duration.
        seed: Seed of the run.
        versions: Library -> version.
    """

    fingerprint: str
    inputs: dict[str, str]
    outputs: dict[str, int]
    results: dict[str, Any]
    started: str
    seconds: float
    seed: int
    versions: dict[str, str]


@dataclass
class Manifest:
    """The finished stages of a run folder."""

    path: Path
    stages: dict[str, StageRecord] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        """The manifest at `path`; without stages if there is no such file.

        Raises:
            StageError: The file is broken or of another format.
        """
        if not path.is_file():
            return cls(path)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != _FORMAT:
                raise ValueError(f"format {content['format']} instead of {_FORMAT}")
            stages = {stage: StageRecord(**record) for stage, record in content["stages"].items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise StageError(
                f"{path} is not a manifest that can be read ({type(error).__name__}: {error}). Remove it to run all "
                "stages again, or choose another `name` for this run."
            ) from None
        return cls(path, stages)

    def put(self, stage: str, record: StageRecord) -> None:
        """Adds or replaces a stage and writes the file."""
        self.stages[stage] = record
        self._write()

    def drop(self, stage: str) -> None:
        """Forgets a stage, if it is there, and writes the file."""
        if self.stages.pop(stage, None) is not None:
            self._write()

    def _write(self) -> None:
        stages = {stage: _plain(dataclasses.asdict(record)) for stage, record in self.stages.items()}
        text = json.dumps({"format": _FORMAT, "stages": stages}, indent=2, ensure_ascii=False, allow_nan=False)
        write_text(self.path, text + "\n")


def versions() -> dict[str, str]:
    """Versions of what a result depends on besides its inputs; nothing is imported for it."""
    libraries = {name: importlib.metadata.version(package) for name, package in _LIBRARIES.items()}
    return {"python": platform.python_version(), **libraries}


def list_outputs(root: Path, output: Path) -> dict[str, int]:
    """Files of a stage, relative to `root`, with their sizes; checkpoints may be removed and do not count."""
    files = [output] if output.is_file() else [file for file in sorted(output.rglob("*")) if file.is_file()]
    return {
        file.relative_to(root).as_posix(): file.stat().st_size
        for file in files
        if not any(part.startswith("checkpoint") for part in file.relative_to(output).parts)
    }


def _plain(value: Any) -> Any:
    """What JSON can hold: scalars of numpy and torch as numbers, NaN and infinities as null, the rest as text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if not isinstance(value, float) and callable(getattr(value, "item", None)):
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)
