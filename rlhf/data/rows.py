"""The rows that the stages receive: checked, with their prompt as the data set had it.

Raw dictionaries become these rows in `parse.py`; `dataset.py` hands them out in `Splits`. Nothing here reads or checks.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from reward_models.chat import Message, Text, to_messages

Kind: TypeAlias = Literal["demonstrations", "preferences", "prompts"]


@dataclass(frozen=True)
class Tokens:
    """A text as the stage's model reads it.

    Attributes:
        context: Ids that are only read: the prompt.
        response: Ids that are learnt or scored, EOS included; empty for a prompt alone.
    """

    context: list[int]
    response: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.context) + len(self.response)


# (prompt, response) -> the whole row as the stage will see it; response None: the prompt alone.
Encode: TypeAlias = Callable[[Text, str | None], Tokens]


@dataclass(frozen=True)
class Demonstration:
    """A prompt and the response to imitate.

    Attributes:
        prompt: What is answered.
        response: The answer.
        columns: What else the row had.
        tokens: What `encode` made of each text of the row; empty if rows were loaded without it.
    """

    prompt: Text
    response: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    tokens: tuple[Tokens, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True)
class Preference:
    """Two responses to one prompt, the better one first; `tokens` are those of chosen and rejected.

    Attributes:
        prompt: What both conversations have in common.
        chosen: The last response of the better one.
        rejected: The last response of the other one.
        columns: What else the row had.
        chosen_turns: Messages between the prompt and `chosen`; empty unless the conversations part earlier.
        rejected_turns: Messages between the prompt and `rejected`.
    """

    prompt: Text
    chosen: str
    rejected: str
    columns: Mapping[str, Any] = field(default_factory=dict)
    chosen_turns: list[Message] = field(default_factory=list)
    rejected_turns: list[Message] = field(default_factory=list)
    tokens: tuple[Tokens, ...] = field(default=(), compare=False, repr=False)

    @property
    def sides(self) -> tuple[tuple[Text, str], tuple[Text, str]]:
        """What each response answers, and the response: chosen, rejected."""
        return (
            (after_turns(self.prompt, self.chosen_turns), self.chosen),
            (after_turns(self.prompt, self.rejected_turns), self.rejected),
        )


def after_turns(prompt: Text, turns: list[Message]) -> Text:
    """A prompt with further messages behind it; without any it stays as it is."""
    return [*to_messages(prompt), *turns] if turns else prompt


@dataclass(frozen=True)
class Prompt:
    """A prompt without a response; `columns` are what reward functions receive by keyword."""

    prompt: Text
    columns: Mapping[str, Any] = field(default_factory=dict)
    tokens: tuple[Tokens, ...] = field(default=(), compare=False, repr=False)


Row: TypeAlias = Demonstration | Preference | Prompt
RowT = TypeVar("RowT", bound=Row)


@dataclass(frozen=True)
class Splits(Generic[RowT]):
    """Rows of one data set. No prompt stands in two splits.

    Attributes:
        train: Rows to train on, mixed by weight.
        validation: Held-out rows, each once.
        test: Held-out rows, each once.
        skipped: Reason -> number of bad rows that were left out.
        examples: Reason -> the message of the first row that was left out for it.
    """

    train: list[RowT]
    validation: list[RowT]
    test: list[RowT]
    skipped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def summary(self) -> str:
        """One line for the log: how many rows go where, and what was left out why."""
        parts = [f"{len(self.train)} row{'' if len(self.train) == 1 else 's'} for training"]
        parts += [
            f"{len(rows)} held out for {name}"
            for name, rows in (("validation", self.validation), ("testing", self.test))
            if rows
        ]
        if self.skipped:
            reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.skipped.items()))
            parts.append(f"{sum(self.skipped.values())} left out ({reasons})")
        return ", ".join(parts)
