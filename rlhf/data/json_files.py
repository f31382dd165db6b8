"""Rows of JSON files: one object a line, or one array of objects, whatever the file is called.

Called by `files.py`. A line that cannot be read becomes a row with a problem, so that `on_bad_row` decides about it
like about any other bad row.
"""

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from rlhf.data.raw import RawRow
from rlhf.errors import DataError

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def read_json(file: BinaryIO, name: str) -> Iterator[RawRow]:
    """Read lines, or the entries of an array if the file begins with `[`.

    Raises:
        DataError: If the array is no JSON.
    """
    begun = False
    for number, line in enumerate(file, start=1):
        text = line.removeprefix(_BYTE_ORDER_MARK).strip()
        if text.startswith(b"[") and not begun:
            yield from _array(b"\n" * (number - 1) + line + file.read(), name)
            return
        if text:
            begun = True
            yield _line(line, f"{name}, line {number}")


def _array(content: bytes, name: str) -> Iterator[RawRow]:
    try:
        entries = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: byte {error.start + 1} is not UTF-8. Save the file as UTF-8.") from error
    except (json.JSONDecodeError, RecursionError) as error:
        where = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "it is nested too deeply"
        raise DataError(
            f"{name}{where}: the file begins as one array, and that is not JSON: {reason}. Mend it, or write one "
            "object a line."
        ) from error
    for number, value in enumerate(entries, start=1):
        yield _row(value, f"{name}, row {number}")


def _line(line: bytes, place: str) -> RawRow:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        return RawRow(place, {}, f"byte {error.start + 1} is not UTF-8")
    except json.JSONDecodeError as error:
        return RawRow(place, {}, f"not JSON: {error.msg} at character {error.pos + 1}")
    except RecursionError:
        return RawRow(place, {}, "not JSON of any use: it is nested too deeply")
    return _row(value, place)


def _row(value: Any, place: str) -> RawRow:
    if not isinstance(value, dict):
        return RawRow(place, {}, f"a JSON {type(value).__name__} instead of an object {{column: value, ...}}")
    return RawRow(place, value)
