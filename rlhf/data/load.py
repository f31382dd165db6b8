"""Raw rows of one configured source: files, a saved or a Hub data set, or a function; columns renamed, TRL's shape.

Called by `dataset.py`; rows are checked afterwards (`validate.py`).
"""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from reward_models.loading import load_callable, source_files
from reward_models.suggest import did_you_mean
from rlhf.config.data import SourceConfig
from rlhf.data.cells import typed
from rlhf.data.files import is_table_of_text, read_file
from rlhf.data.formats import convert
from rlhf.data.functions import read_function
from rlhf.data.origin import Origin, locate
from rlhf.data.raw import RawRow
from rlhf.data.rows import Kind
from rlhf.errors import DataError
from rlhf.files.hashes import file_hash, files_hash
from rlhf.files.hub import dataset_commit

logger = logging.getLogger(__name__)


def read_source(source: SourceConfig, kind: Kind) -> list[RawRow]:
    """All rows of a source, columns renamed as its `columns` says, in TRL's shape whatever its `format`.

    A renamed column takes the place of one that had the name before.

    Raises:
        DataError: If the source cannot be found or read, or lacks a column that `columns` names.
    """
    origin = locate(source)
    rows = _rename(list(_read(origin, source)), source)
    text = bool(origin.files) and all(map(is_table_of_text, origin.files))
    if source.text_columns and not text:
        raise DataError(f"{source.path}: text_columns has an effect on CSV and TSV alone: remove it.")
    if text:
        _refuse_unknown(source.text_columns, rows, source.path)
        rows = typed(rows, source.text_columns)
    return convert(rows, source.format, kind)


def source_hash(source: SourceConfig) -> str:
    """Hash of what a source holds: files' bytes (of several also their names), or a function's source file and args.

    A Hub data set is not read: its name, split, args and the commit that it stands for now are hashed.

    Raises:
        DataError: If the source cannot be found.
    """
    origin = locate(source)
    if len(origin.files) == 1:
        return file_hash(origin.files[0])
    if origin.files:
        return files_hash(origin.files)
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


def _read(origin: Origin, source: SourceConfig) -> Iterable[RawRow]:
    if origin.form == "function":
        return read_function(source.path, source.args)
    if origin.form == "hub":
        return _read_hub(source)
    if source.args:
        raise DataError(f"{source.path}: args {source.args} have no effect on a file: remove them.")
    if origin.form == "saved":
        return _read_saved(origin.folder, source.path)
    if len(origin.files) == 1 and not Path(source.path).expanduser().is_dir():
        return read_file(origin.files[0], source.path)
    return (row for file in origin.files for row in read_file(file, _short(file)))


def _short(file: Path) -> str:
    """A file of a folder or glob, as it is reached from the current folder."""
    here = Path.cwd()
    return str(file.relative_to(here)) if file.is_absolute() and file.is_relative_to(here) else str(file)


def _read_saved(folder: Path | None, name: str) -> Iterator[RawRow]:
    import datasets

    try:
        rows: Iterable[dict[str, Any]] = datasets.load_from_disk(str(folder))
    except Exception as error:  # the library raises errors of many kinds, pyarrow's among them
        raise DataError(
            f"{name}: save_to_disk wrote this folder, but it cannot be read: {type(error).__name__}: {error}. "
            "Save it again."
        ) from error
    for number, values in enumerate(rows, start=1):
        yield RawRow(f"{name}, row {number}", dict(values))


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
    present = _columns(rows)
    for ours, theirs in source.columns.items():
        if present and theirs not in present:
            raise DataError(f"{source.path}: columns maps {ours} to {_not_there(theirs, present)}")
    taken = set(source.columns.values()) | set(source.columns)
    return [replace(row, values=_renamed(row.values, source.columns, taken)) for row in rows]


def _renamed(values: dict[str, Any], columns: dict[str, str], taken: set[str]) -> dict[str, Any]:
    ours = {ours: values[theirs] for ours, theirs in columns.items() if theirs in values}
    return {**ours, **{name: value for name, value in values.items() if name not in taken}}


def _refuse_unknown(names: Sequence[str], rows: list[RawRow], path: str) -> None:
    present = _columns(rows)
    for name in names:
        if present and name not in present:
            raise DataError(f"{path}: text_columns names {_not_there(name, present)}")


def _columns(rows: list[RawRow]) -> dict[str, None]:
    return dict.fromkeys(name for row in rows for name in row.values)  # in order of appearance


def _not_there(name: str, present: Iterable[str]) -> str:
    meant = did_you_mean(name, present)
    hint = f" ({meant})" if meant else ""
    return f"{name}, which the data does not have{hint}; it has {', '.join(present)}."
