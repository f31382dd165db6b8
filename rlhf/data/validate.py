"""Every row is checked here: a bad one is an error that says where and why, or is skipped and counted.

Between `load.py` (raw rows) and `split.py`. Nothing is repaired, shortened or dropped in silence.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

from reward_models.chat import Text, to_messages
from reward_models.errors import UserError
from rlhf.data.messages import BadRow, folded
from rlhf.data.parse import parse_row
from rlhf.data.raw import WRONG_FORMAT, RawRow
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

    def merge(self, other: "Report") -> None:
        """Count the rows of another report too."""
        self.skipped += other.skipped
        self.examples = {**other.examples, **self.examples}


# Where the limit of a row's tokens stands in the configuration.
_LIMITS = {
    "demonstrations": "sft.max_tokens",
    "preferences": "reward.max_tokens",
    "prompts": "ppo.rollout.max_prompt_tokens",
}


def check_rows(
    raw: Iterable[RawRow],
    kind: Kind,
    *,
    on_bad_row: Literal["error", "skip"],
    fold_system: bool = False,
    encode: Encode | None = None,
    max_tokens: int | None = None,
) -> tuple[list[Row], Report]:
    """Read raw rows as `kind` and measure them.

    Args:
        raw: Rows of one source.
        kind: What each row must be.
        on_bad_row: Whether the first bad row becomes an error (which also counts the others) or all are skipped.
        fold_system: Whether a system message becomes the head of the first message of the user.
        encode: Tokenises a row, which keeps the result as `tokens`; None leaves lengths unchecked.
        max_tokens: Longest row in tokens. A pair is as long as the longer of its two rows.

    Returns:
        The good rows in their order, and the report about the others.

    Raises:
        DataError: For a bad row, if `on_bad_row` is "error". Rows of no use to the stage are never an error.
    """
    assert (encode is None) == (max_tokens is None), "encode and max_tokens belong together"
    rows: list[Row] = []
    report, bad_rows = Report(), Report()
    for entry in raw:
        if entry.left_out is not None:
            report.add(entry.left_out, f"{entry.place}: {entry.problem}.")
            continue
        try:
            row = _folded(_parsed(entry, kind)) if fold_system else _parsed(entry, kind)
            rows.append(row if encode is None or max_tokens is None else _tokenised(row, kind, encode, max_tokens))
        except BadRow as bad:
            bad_rows.add(bad.reason, _message(entry, bad))
    if bad_rows.examples and on_bad_row == "error":
        raise DataError(f"{next(iter(bad_rows.examples.values()))} {_others_too(bad_rows)}")
    report.merge(bad_rows)
    return rows, report


def _parsed(entry: RawRow, kind: Kind) -> Row:
    if entry.problem is not None:
        other = ", or name another `format`" if entry.problem.startswith(WRONG_FORMAT) else ""
        raise BadRow("unreadable", None, entry.problem, f"Mend or remove it{other}")
    return parse_row(kind, entry.values)


def _folded(row: Row) -> Row:
    return row if isinstance(row.prompt, str) else replace(row, prompt=folded(row.prompt))


def _tokenised(row: Row, kind: Kind, encode: Encode, max_tokens: int) -> Row:
    """The row with its tokens, if none of its texts is too long."""
    tokens = []
    for column, context, response in _texts(row):
        try:
            tokens.append(encode(context, response))
        except UserError as error:
            raise BadRow(
                "refused_by_template", column, f"the chat template refuses it: {error}", _way_out(context)
            ) from error
        length = len(tokens[-1])
        if length > max_tokens:
            what = "tokens with its prompt" if response is not None else "tokens"
            problem = f"{length} {what}, {max_tokens} are allowed"
            raise BadRow("too_long", column, problem, f"Shorten it, or raise {_LIMITS[kind]}")
    if isinstance(row, Preference) and tokens[0] == tokens[1]:
        raise BadRow(
            "identical_pair",
            "rejected",
            "chosen and rejected are the same tokens once the chat template has written them",
            "Remove the row, or set chat_template to one that keeps what tells them apart",
        )
    return replace(row, tokens=tuple(tokens))


def _texts(row: Row) -> list[tuple[str, Text, str | None]]:
    """Column, what is answered, and the answer, of each text that is tokenised."""
    if isinstance(row, Demonstration):
        return [("completion", row.prompt, row.response)]
    if isinstance(row, Preference):
        return [(name, *side) for name, side in zip(("chosen", "rejected"), row.sides, strict=True)]
    return [("prompt", row.prompt, None)]


def _way_out(prompt: Text) -> str:
    roles = [message["role"] for message in to_messages(prompt)]
    if roles[0] in ("system", "developer") and len(roles) > 1:
        return "If it knows no system role, `fold_system: true` puts that message into the first one of the user"
    return "Mend or remove the row"


def _message(entry: RawRow, bad: BadRow) -> str:
    place = entry.place if bad.column is None else f"{entry.place}, column {bad.column}"
    return f"{place}: {bad.problem.rstrip('. ')}. {bad.way_out}."


def _others_too(report: Report) -> str:
    total = sum(report.skipped.values())
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(report.skipped.items()))
    counted = f"{total} bad rows in all ({reasons}). " if total > 1 else ""
    return f"{counted}`on_bad_row: skip` leaves bad rows out and counts them."
