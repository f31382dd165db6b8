"""Rollouts on disk: one typed Parquet file an iteration, `run_dir/rollouts/iteration_000012.parquet`, counted from 1.

A row is one episode: what was asked, what was answered, what it earned, token by token. The columns are fixed
(`rollout_schema`), so that files of different iterations and runs can be read as one data set. Nothing is shown or
computed here.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlhf.errors import StageError
from rlhf.files.atomic import written_file
from rlhf.tracking.rollout_schema import (
    COLUMNS,
    COMPONENT_PREFIX,
    NESTED_COLUMNS,
    VERSION,
    schema_of,
    upgraded,
    version_of,
)
from rlhf.tracking.text import as_text

__all__ = ["discard_from", "list_files", "read", "read_table", "typed_rows", "write"]


def typed_rows(rows: Sequence[Mapping[str, Any]], iteration: int) -> list[dict[str, Any]]:
    """Brings rows to the fixed columns, in their fixed order; what a row lacks becomes None.

    Args:
        rows: Keys are those of `COLUMNS` and `component/NAME`. A prompt may be messages; it becomes text.
        iteration: From 1; written into every row.

    Raises:
        ValueError: A row has a key that is none of those, or a value that is not of the column's type.
    """
    schema = schema_of(_components(rows))
    return [
        {column.name: _convert(row.get(column.name), column, number) for column in schema}
        for number, row in enumerate({**row, "iteration": iteration} for row in rows)
    ]


def write(run_dir: Path, rows: Sequence[Mapping[str, Any]], iteration: int) -> Path:
    """Writes rows made by `typed_rows`; the file appears whole or not at all."""
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema_of(_components(rows)))
    path = run_dir / "rollouts" / f"iteration_{iteration:06d}.parquet"
    with written_file(path) as unfinished:
        pq.write_table(table, unfinished, compression="zstd")
    return path


def list_files(run_dir: Path) -> dict[int, Path]:
    """Iteration -> file, by rising iteration, from 1.

    Raises:
        StageError: A file cannot be read, or is of a later version.
    """
    found = (run_dir / "rollouts").glob("iteration_*.parquet")
    numbers = {path: int(path.stem.removeprefix("iteration_")) for path in found}
    first = 0 if 0 in numbers.values() else 1
    # Files of version 1 are numbered from 0. A run that went on with a later rlhf has files of both.
    shifted = {path: number + 1 if first == 0 and _version(path) == 1 else number for path, number in numbers.items()}
    return dict(sorted((number, path) for path, number in shifted.items()))


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of one file as a table in the columns of now.

    Args:
        path: A file of `list_files`, of this or an earlier version.
        columns: Only these, of those that are there.

    Raises:
        StageError: The file cannot be read, or is of a later version.
    """
    if _version(path) < VERSION:
        rows = [upgraded(row) for row in _open(path).read().to_pylist()]
        typed = typed_rows(rows, rows[0]["iteration"]) if rows else []
        table = pa.Table.from_pylist(typed, schema=schema_of(_components(rows)))
        return table if columns is None else table.select([name for name in columns if name in table.column_names])
    file = _open(path)
    return file.read(columns=None if columns is None else [c for c in columns if c in file.schema_arrow.names])


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of one file. Raises as `read_table` does."""
    rows: list[dict[str, Any]] = read_table(path).to_pylist()
    return rows


def discard_from(run_dir: Path, iteration: int) -> None:
    """Removes the files of this and later iterations: a stage that is run again must not be mixed with its past."""
    for number, path in list_files(run_dir).items():
        if number >= iteration:
            path.unlink()


def _open(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise StageError(f"{path} is not a Parquet file that can be read ({error}); remove it") from None


def _version(path: Path) -> int:
    return version_of(_open(path).schema_arrow, path)


def _components(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Component columns in the order of their first appearance."""
    seen = dict.fromkeys(key for row in rows for key in row)
    components = [key for key in seen if key.startswith(COMPONENT_PREFIX)]
    unknown = [key for key in seen if key not in COLUMNS and key not in components]
    if unknown:
        raise ValueError(
            f"rollout column {unknown[0]!r} is not known; allowed: {', '.join(COLUMNS)} and {COMPONENT_PREFIX}NAME"
        )
    return components


def _convert(value: Any, column: pa.Field, row: int) -> Any:
    """One cell as the column's type wants it; None stays None, and NaN stays NaN (it says: did not apply)."""
    if value is None:
        return None
    try:
        if column.name == "prompt":
            return as_text(value)
        if column.name in NESTED_COLUMNS:
            pa.scalar(value, column.type)
            return value
        if column.type == pa.float64():
            return float(value)
        return pa.scalar(value, column.type).as_py()
    except (TypeError, ValueError):
        raise ValueError(f"rollout row {row}, column {column.name!r}: {value!r} is not of type {column.type}") from None
