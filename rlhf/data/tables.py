"""Rows of tables: CSV, TSV and Parquet. Called by `files.py`; what the cells of a CSV file mean says `cells.py`."""

import csv
import io
from collections.abc import Iterator
from typing import BinaryIO, cast

from rlhf.data.raw import RawRow
from rlhf.errors import DataError

_LONGEST_HEADER = 65536  # bytes


def read_csv(file: BinaryIO, name: str) -> Iterator[RawRow]:
    """Read the lines below a header; every cell is text. A place is the line on which the row begins.

    Fields are parted by what parts those of the header: commas, semicolons (where the comma is for decimals) or tabs.

    Raises:
        DataError: If the file is not UTF-8, or a quoted field does not end.
    """
    csv.field_size_limit(2**31 - 1)  # the default, 131,072 characters, is shorter than a long conversation
    line = 1
    header_line = cast(io.BufferedReader, file).peek(_LONGEST_HEADER).partition(b"\n")[0].decode(errors="replace")
    delimiter = max(",;\t", key=header_line.count)  # the comma where there is one column
    try:
        # utf-8-sig: spreadsheets write a byte order mark, which would become part of the first column's name
        with io.TextIOWrapper(file, encoding="utf-8-sig", newline="") as text:
            reader = csv.reader(text, strict=True, delimiter=delimiter)
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


def read_parquet(file: BinaryIO, name: str) -> Iterator[RawRow]:
    """Read the rows of a Parquet file; lists and structs become lists and dicts.

    Raises:
        DataError: If it is none.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            number = 0
            for batch in table.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield RawRow(f"{name}, row {number}", values)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{name}: not a readable Parquet file: {error}. Write it again.") from error


def _csv_row(header: list[str], cells: list[str], place: str) -> RawRow:
    if len(cells) != len(header):
        return RawRow(place, {}, f"{len(cells)} fields instead of the header's {len(header)}: {', '.join(header)}")
    return RawRow(place, dict(zip(header, cells, strict=True)))
