"""Raw rows from .jsonl, .parquet and .csv files, each with the place a user can look it up at.

First step of `load.py`. Columns are neither mapped nor checked here; a line that cannot be read becomes a row with a
problem, so that `on_bad_row` decides about it like about any other bad row.
"""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward_models.suggest import paths_like
from rlhf.errors import DataError


@dataclass(frozen=True)
class RawRow:
    """One row as the source has it.

    Attributes:
        place: Where it stands, e.g. `train.jsonl, line 3` (lines and rows count from 1).
        values: Column -> value; empty if the row cannot be read.
        problem: Why it cannot be read, or None.
    """

    place: str
    values: dict[str, Any]
    problem: str | None = None


def read_file(path: Path, name: str) -> Iterator[RawRow]:
    """Read the rows of a file.

    Args:
        path: A file whose suffix is one of `READERS`.
        name: What the user calls the file; it opens each row's place.

    Raises:
        DataError: If the file as a whole cannot be read.
    """
    try:
        yield from READERS[path.suffix](path, name)
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error}. Check the file and its permissions.") from error


def missing_file(path: Path, name: str) -> DataError:
    """The error for a path that does not exist, with similar names from the nearest folder that does."""
    folder, wanted, near = paths_like(path)
    there = [entry.name for entry in sorted(folder.iterdir()) if entry.suffix in READERS]
    known = [entry.name for entry in near] or there[:5]
    hint = f"{'did you mean' if near else 'it holds'} {', '.join(known)}" if known else "it holds no data files"
    return DataError(
        f"{name}: no such file; folder {folder.resolve()} has no {wanted}: {hint}? "
        f"Relative paths start at {Path.cwd()}."
    )


def _read_jsonl(path: Path, name: str) -> Iterator[RawRow]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _json_row(line, f"{name}, line {number}")


def _json_row(line: bytes, place: str) -> RawRow:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return RawRow(place, {}, f"byte {error.start + 1} is not UTF-8")
    except json.JSONDecodeError as error:
        return RawRow(place, {}, f"not JSON: {error.msg} at character {error.pos + 1}")
    except RecursionError:
        return RawRow(place, {}, "not JSON of any use: it is nested too deeply")
    if not isinstance(value, dict):
        return RawRow(place, {}, f"a JSON {type(value).__name__} instead of an object {{column: value, ...}}")
    return RawRow(place, value)


def _read_csv(path: Path, name: str) -> Iterator[RawRow]:
    csv.field_size_limit(2**31 - 1)  # the default, 131,072 characters, is shorter than a long conversation
    try:
        # utf-8-sig: spreadsheets write a byte order mark, which would become part of the first column's name
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            line = reader.line_num + 1
            for cells in reader:
                if cells:  # a blank line has none
                    yield _csv_row(header, cells, f"{name}, line {line}")
                line = reader.line_num + 1
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: byte {error.start + 1} is not UTF-8. Save the file as UTF-8.") from error
    except csv.Error as error:
        raise DataError(f"{name}, line {line}: not CSV: {error}. Quote fields that hold quotes or lines.") from error


def _csv_row(header: list[str], cells: list[str], place: str) -> RawRow:
    if len(cells) != len(header):
        return RawRow(place, {}, f"{len(cells)} fields instead of the header's {len(header)}: {', '.join(header)}")
    return RawRow(place, dict(zip(header, cells, strict=True)))


def _read_parquet(path: Path, name: str) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield RawRow(f"{name}, row {number}", values)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{name}: not a readable Parquet file: {error}. Write it again.") from error


READERS: dict[str, Callable[[Path, str], Iterator[RawRow]]] = {
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}
