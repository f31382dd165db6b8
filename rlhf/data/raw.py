"""A row as its source has it, before anyone has looked at its columns. Made by the readers, read by `validate.py`."""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

WRONG_FORMAT = "not of format "  # begins the problem of a row that has not the shape which `format` names

LeftOut: TypeAlias = Literal["undesired", "unpaired"]


@dataclass(frozen=True)
class RawRow:
    """One row of a source.

    Attributes:
        place: Where it stands, e.g. `train.jsonl, line 3` (lines and rows count from 1).
        values: Column -> value; empty if the row cannot be read.
        problem: Why it cannot be used, or None.
        left_out: Set if the row is right but of no use to this stage: it is counted and no error.
    """

    place: str
    values: dict[str, Any]
    problem: str | None = None
    left_out: LeftOut | None = None
