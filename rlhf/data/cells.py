"""What the cells of a CSV or TSV file mean: a file has text alone, reward functions want numbers.

The rule, for one column at a time: if all its cells that are not empty are JSON numbers (`4`, `-0.5`, `1e3`; not `007`,
`1,5` or `+3`), all true or false (in any case), or all JSON lists or objects, they become that, and its empty cells
None. Any other column stays text, and so does one that `text_columns` names. Columns that hold prompts and responses
stay text unless all their cells are lists of messages.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rlhf.data.raw import RawRow

_TEXTS = ("prompt", "completion", "chosen", "rejected", "instruction", "input", "output", "system")
_TRUTH = {"true": True, "false": False}


def typed(rows: Sequence[RawRow], text_columns: Sequence[str]) -> list[RawRow]:
    """Return the rows with the cells of each column typed, as the module says.

    Args:
        rows: Rows whose values are all text, columns renamed.
        text_columns: Columns that stay text.
    """
    names = {name for row in rows for name in row.values if name not in text_columns}
    columns = {name: _column([row.values.get(name, "") for row in rows], name) for name in names}
    return [
        replace(row, values={name: columns[name][i] if name in columns else cell for name, cell in row.values.items()})
        for i, row in enumerate(rows)
    ]


def _column(cells: list[str], name: str) -> list[Any]:
    filled = [cell.strip() for cell in cells if cell.strip()]
    if filled and all(cell.lower() in _TRUTH for cell in filled):
        values: dict[str, Any] = {cell: _TRUTH[cell.lower()] for cell in filled}
    else:
        values = _parsed(filled)
    if not values or (name in _TEXTS and not all(map(_is_messages, values.values()))):
        return list(cells)
    return [values.get(cell.strip()) for cell in cells]


def _parsed(cells: list[str]) -> dict[str, Any]:
    """Cell -> value, if all are numbers, or all lists and objects; else nothing."""
    values: dict[str, Any] = {}
    for cell in cells:
        try:
            values[cell] = json.loads(cell, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return {}
    numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in values.values()]
    nested = [isinstance(value, list | dict) for value in values.values()]
    return values if all(numbers) or all(nested) else {}


def _is_messages(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(entry, dict) for entry in value)


def _refuse(constant: str) -> None:
    raise ValueError(constant)  # NaN and Infinity, which are no JSON
