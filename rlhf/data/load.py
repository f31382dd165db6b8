"""Raw rows of one configured source: a file, a packaged data set, a Hub data set or a function, columns renamed.

Called by `dataset.py`; rows are checked afterwards (`validate.py`).
"""

import importlib.resources
import json
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from reward_models.loading import load_callable, source_files
from reward_models.suggest import closest, did_you_mean
from rlhf.config.data import SourceConfig
from rlhf.data.files import READERS, RawRow, missing_file, read_file
from rlhf.data.functions import read_function
from rlhf.errors import DataError
from rlhf.files.hashes import file_hash, files_hash
from rlhf.files.hub import dataset_commit

logger = logging.getLogger(__name__)

PACKAGED = "packaged:"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# Data formats of others, named so that data.json is refused as a file and not looked up as a Hub id.
_OTHER_SUFFIXES = {".json", ".txt", ".tsv", ".arrow", ".xlsx", ".gz", ".zip", ".zst", ".yaml", ".yml", ".py"}


@dataclass(frozen=True)
class Origin:
    """What a source's `path` turned out to mean."""

    form: Literal["file", "function", "hub"]
    file: Path | None = None


def read_source(source: SourceConfig) -> list[RawRow]:
    """All rows of a source, columns renamed as its `columns` says.

    A renamed column takes the place of one that had the name before.

    Raises:
        DataError: If the source cannot be found or read, or lacks a column that `columns` names.
    """
    return _rename(list(_read(source)), source)


def locate(source: SourceConfig) -> Origin:
    """Find out what a path means, in this order: packaged, file by suffix, function by colon, Hub id.

    Raises:
        DataError: If it is none of these, or the file does not exist.
    """
    path = source.path
    if path.startswith(PACKAGED):
        return Origin("file", _packaged_file(path.removeprefix(PACKAGED)))
    file = Path(path).expanduser()
    if file.suffix in READERS:
        if not file.is_file():
            raise missing_file(file, path)
        return Origin("file", file)
    if ":" in path and "://" not in path:
        return Origin("function")
    if file.exists() or file.suffix in _OTHER_SUFFIXES or not _HUB_ID.fullmatch(path):
        what = "a folder" if file.is_dir() else "no file that can be read"
        raise DataError(
            f"{path}: {what}. Allowed are {', '.join(READERS)} files, {PACKAGED}NAME, module:function, "
            "path/to/file.py:function and Hub ids (owner/name)."
        )
    if any(file.with_name(file.name + suffix).is_file() for suffix in READERS):  # the suffix was forgotten
        raise missing_file(file, path)
    return Origin("hub")


def source_hash(source: SourceConfig) -> str:
    """Hash of what a source holds: a file's bytes, or a function's source file and args.

    A Hub data set is not read: its name, split, args and the commit that it stands for now are hashed.

    Raises:
        DataError: If the source cannot be found.
    """
    origin = locate(source)
    if origin.file is not None:
        return file_hash(origin.file)
    args = json.dumps(source.args, sort_keys=True, default=repr)
    if origin.form == "function":
        load_callable(source.path, source.path, DataError)  # a misspelt name shows before anything is trained
        return sha256(f"{files_hash(source_files(source.path))} {args}".encode()).hexdigest()
    commit = dataset_commit(source.path, source.args.get("revision"))
    if commit is None:
        logger.warning(
            "%s: the Hub does not say which commit this data set is at, so a change of it would not be noticed. "
            "Set args: {revision: COMMIT}, or go on with this in mind.",
            source.path,
        )
    return sha256(json.dumps([source.path, source.split, args, commit]).encode()).hexdigest()


def _read(source: SourceConfig) -> Iterable[RawRow]:
    origin = locate(source)
    if origin.form == "function":
        return read_function(source.path, source.args)
    if origin.file is None:
        return _read_hub(source)
    if source.args:
        raise DataError(f"{source.path}: args {source.args} have no effect on a file: remove them.")
    return read_file(origin.file, source.path)


def _packaged_file(name: str) -> Path:
    root = Path(str(importlib.resources.files("envs"))) / "data"
    known = sorted(file.relative_to(root).with_suffix("").as_posix() for file in root.rglob("*.jsonl"))
    if name not in known:
        near = closest(name, known, most=3) or known
        raise DataError(f"{PACKAGED}{name}: no such packaged data set; there are: {', '.join(near) or 'none'}.")
    return root / f"{name}.jsonl"


def _read_hub(source: SourceConfig) -> Iterator[RawRow]:
    import datasets

    try:
        rows: Iterable[dict[str, Any]] = datasets.load_dataset(source.path, split=source.split, **source.args)
    except Exception as error:  # the library raises errors of many kinds, its own, the Hub's and the network's
        raise DataError(
            f"{source.path}: no such file here, and as a data set of the Hub (split {source.split!r}) it cannot be "
            f"loaded: {type(error).__name__}: {error}. Check the name and `split`; without a network, give a file."
        ) from error
    for number, values in enumerate(rows, start=1):
        yield RawRow(f"{source.path}, row {number}", dict(values))


def _rename(rows: list[RawRow], source: SourceConfig) -> list[RawRow]:
    present = dict.fromkeys(name for row in rows for name in row.values)  # in order of appearance
    for ours, theirs in source.columns.items():
        if present and theirs not in present:
            meant = did_you_mean(theirs, present)
            hint = f" ({meant})" if meant else ""
            raise DataError(
                f"{source.path}: columns maps {ours} to {theirs}, which the data does not have{hint}; "
                f"it has {', '.join(present)}."
            )
    taken = set(source.columns.values()) | set(source.columns)
    return [_renamed(row, source.columns, taken) for row in rows]


def _renamed(row: RawRow, columns: dict[str, str], taken: set[str]) -> RawRow:
    values = {ours: row.values[theirs] for ours, theirs in columns.items() if theirs in row.values}
    rest = {name: value for name, value in row.values.items() if name not in taken}
    return RawRow(row.place, {**values, **rest}, row.problem)
