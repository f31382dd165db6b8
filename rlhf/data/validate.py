"""Every row is checked here: a bad one is an error that says where and why, or is skipped and counted.

Between `load.py` (raw rows) and `split.py`. Nothing is repaired, shortened or dropped in silence.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from reward_models.errors import UserError
from rlhf.data.files import RawRow
from rlhf.data.parse import BadRow, parse_row
from rlhf.data.rows import Demonstration, Encode, Kind, Preference, Row
from rlhf.errors import DataError


@dataclass
class Report:
    """What was left out of one source: reason -> number of rows, and reason -> the first such row's message."""

    skipped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, message: str) -> None:
        """Count one bad row."""
        self.skipped[reason] += 1
        self.examples.setdefault(reason, message)


def check_rows(
    raw: Iterable[RawRow],
    kind: Kind,
    *,
    on_bad_row: Literal["error", "skip"],
    encode: Encode | None = None,
    max_tokens: int | None = None,
) -> tuple[list[Row], Report]:
    """Read raw rows as `kind` and measure them.

    Args:
        raw: Rows of one source.
        kind: What each row must be.
        on_bad_row: Whether the first bad row becomes an error (which also counts the others) or all are skipped.
        encode: Tokenises a row, which keeps the result as `tokens`; None leaves lengths unchecked.
        max_tokens: Longest row in tokens. A pair is as long as the longer of its two rows.

    Returns:
        The good rows in their order, and the report about the bad ones.

    Raises:
        DataError: For a bad row, if `on_bad_row` is "error".
    """
    assert (encode is None) == (max_tokens is None), "encode and max_tokens belong together"
    rows: list[Row] = []
    report = Report()
    first: str | None = None
    for entry in raw:
        try:
            rows.append(_check_row(entry, kind, encode, max_tokens))
        except BadRow as bad:
            message = _message(entry, bad)
            first = first or message
            report.add(bad.reason, message)
    if first is not None and on_bad_row == "error":
        raise DataError(f"{first} {_others_too(report)}")
    return rows, report


def _check_row(entry: RawRow, kind: Kind, encode: Encode | None, max_tokens: int | None) -> Row:
    if entry.problem is not None:
        raise BadRow("unreadable", None, entry.problem, "Mend or remove it")
    row = parse_row(kind, entry.values)
    if encode is not None and max_tokens is not None:
        return _tokenised(row, encode, max_tokens)
    return row


def _tokenised(row: Row, encode: Encode, max_tokens: int) -> Row:
    """The row with its tokens, if none of its texts is too long."""
    tokens = []
    for column, response in _responses(row):
        try:
            tokens.append(encode(row.prompt, response))
        except UserError as error:
            raise BadRow(
                "refused_by_template", column, f"the chat template refuses it: {error}", "Change the messages' order"
            ) from error
        length = len(tokens[-1])
        if length > max_tokens:
            raise BadRow(
                "too_long",
                column,
                f"{length} tokens with its prompt, {max_tokens} are allowed"
                if response is not None
                else f"{length} tokens, {max_tokens} are allowed",
                f"Shorten it, or raise {'max_tokens' if response is not None else 'max_prompt_tokens'}",
            )
    if isinstance(row, Preference) and tokens[0] == tokens[1]:
        raise BadRow(
            "identical_pair",
            "rejected",
            "chosen and rejected are the same tokens once the chat template has written them",
            "Remove the row, or set chat_template to one that keeps what tells them apart",
        )
    return replace(row, tokens=tuple(tokens))


def _responses(row: Row) -> list[tuple[str, str | None]]:
    if isinstance(row, Demonstration):
        return [("completion", row.response)]
    if isinstance(row, Preference):
        return [("chosen", row.chosen), ("rejected", row.rejected)]
    return [("prompt", None)]


def _message(entry: RawRow, bad: BadRow) -> str:
    place = entry.place if bad.column is None else f"{entry.place}, column {bad.column}"
    return f"{place}: {bad.problem}. {bad.way_out}."


def _others_too(report: Report) -> str:
    total = sum(report.skipped.values())
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(report.skipped.items()))
    counted = f"{total} bad rows in all ({reasons}). " if total > 1 else ""
    return f"{counted}`on_bad_row: skip` leaves bad rows out and counts them."
