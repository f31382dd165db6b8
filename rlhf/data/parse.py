"""From a raw row to a `Demonstration`, `Preference` or `Prompt`, or to the reason why it is none.

The shapes are those of TRL's data sets: `prompt` and `completion` (text, or lists of messages), `messages` (a
conversation whose last message is the response), `prompt`, `chosen` and `rejected`, or `chosen` and `rejected` alone
when both are conversations that differ in their last message only. Lengths are checked in `validate.py`.
"""

from collections.abc import Mapping
from typing import Any, Literal, NoReturn, TypeAlias

from reward_models.chat import Message, Text, to_messages
from rlhf.data.rows import Demonstration, Kind, Preference, Prompt, Row

Reason: TypeAlias = Literal[
    "unreadable",
    "missing_column",
    "reserved_column",
    "not_text",
    "malformed_messages",
    "no_prompt",
    "empty_response",
    "identical_pair",
    "refused_by_template",
    "too_long",
]

ROLES = ("system", "developer", "user", "assistant", "tool")
# Reward functions receive these by keyword; a column of the same name would be a second value for them.
RESERVED_COLUMNS = ("prompts", "completions", "completion_ids")


class BadRow(Exception):
    """One row cannot be used. `validate.py` turns it into an error or counts it."""

    def __init__(self, reason: Reason, column: str | None, problem: str, way_out: str) -> None:
        super().__init__(problem)
        self.reason: Reason = reason
        self.column = column
        self.problem = problem
        self.way_out = way_out


def parse_row(kind: Kind, values: Mapping[str, Any]) -> Row:
    """Read one row of a data set.

    Args:
        kind: What the row must be.
        values: Column -> value, column mapping already applied.

    Raises:
        BadRow: With the reason, the column and the way out.
    """
    if kind == "demonstrations":
        return _demonstration(values)
    if kind == "preferences":
        return _preference(values)
    return _prompt(values)


def _demonstration(values: Mapping[str, Any]) -> Demonstration:
    if "messages" in values and "completion" not in values:
        prompt, response = _split_conversation(values["messages"], "messages")
        return Demonstration(prompt, response, _others(values, "messages"))
    prompt_text = _read_prompt(values)
    response = _read_response(values, "completion", prompt_text)
    return Demonstration(prompt_text, response, _others(values, "prompt", "completion"))


def _preference(values: Mapping[str, Any]) -> Preference:
    prompt: Text
    if "prompt" in values:
        prompt = _read_prompt(values)
        chosen, rejected = (_read_response(values, column, prompt) for column in ("chosen", "rejected"))
    else:
        prompt, chosen, rejected = _implicit_prompt(values)
    if chosen.strip() == rejected.strip():
        raise BadRow(
            "identical_pair", "rejected", "chosen and rejected are the same text", "Change one or remove the row"
        )
    return Preference(prompt, chosen, rejected, _others(values, "prompt", "chosen", "rejected"))


def _prompt(values: Mapping[str, Any]) -> Prompt:
    for column in RESERVED_COLUMNS:
        if column in values:
            raise BadRow(
                "reserved_column",
                column,
                "reward functions receive an argument of this name already",
                f"Rename it: `columns: {{reference: {column}}}`",
            )
    if "messages" not in values or "prompt" in values:
        return Prompt(_read_prompt(values), _others(values, "prompt"))
    messages = _read_messages(values["messages"], "messages")
    columns = _others(values, "messages")
    if messages[-1]["role"] == "assistant":  # a demonstration used as a prompt: its reply stays at hand as a reference
        prompt, columns["completion"] = _split_conversation(messages, "messages")
        return Prompt(prompt, columns)
    return Prompt(_checked_prompt(messages, "messages"), columns)


def _implicit_prompt(values: Mapping[str, Any]) -> tuple[Text, str, str]:
    for column in ("chosen", "rejected"):
        if isinstance(_required(values, column), str):
            raise BadRow(
                "missing_column",
                "prompt",
                f"there is no such column, and {column} is plain text, so that the prompt cannot be taken from it; "
                f"the row has {_names(values)}",
                "Add it, map another one (`columns: {prompt: NAME}`), or make chosen and rejected lists of messages",
            )
    prompt, chosen = _split_conversation(values["chosen"], "chosen")
    other_prompt, rejected = _split_conversation(values["rejected"], "rejected")
    if prompt != other_prompt:
        raise BadRow(
            "malformed_messages",
            "rejected",
            "chosen and rejected differ before their last message, so that they answer different prompts",
            "Make all messages but the last equal",
        )
    return prompt, chosen, rejected


def _read_prompt(values: Mapping[str, Any]) -> Text:
    value = _required(values, "prompt")
    if isinstance(value, list):
        return _checked_prompt(_read_messages(value, "prompt"), "prompt")
    return _checked_prompt(_read_text(value, "prompt"), "prompt")


def _read_response(values: Mapping[str, Any], column: str, prompt: Text) -> str:
    value = _required(values, column)
    if isinstance(value, list):
        messages = _read_messages(value, column)
        if messages[-1]["role"] != "assistant":
            _malformed(column, f"the last message is the {messages[-1]['role']}'s, not the assistant's")
        if len(messages) > 1 and messages[:-1] != to_messages(prompt):
            _malformed(column, f"it has {len(messages)} messages that do not begin with the row's prompt")
        value = messages[-1]["content"]
    return _checked_response(_read_text(value, column), column)


def _split_conversation(value: Any, column: str) -> tuple[list[Message], str]:
    """A conversation's messages before the last one, and the text of the last one, which is the assistant's."""
    messages = _read_messages(value, column)
    if messages[-1]["role"] != "assistant":
        _malformed(column, f"the conversation ends with the {messages[-1]['role']}, not with the assistant")
    prompt = messages[:-1]
    _checked_prompt(prompt, column)
    return prompt, _checked_response(messages[-1]["content"], column)


def _checked_prompt(prompt: Text, column: str) -> Text:
    contents = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    if not any(content.strip() for content in contents):
        raise BadRow("no_prompt", column, "there is no text before the response", "Write a prompt or remove the row")
    if isinstance(prompt, list) and prompt[-1]["role"] == "assistant":
        _malformed(column, "the prompt ends with the assistant, so that there is nothing to respond to")
    return prompt


def _checked_response(response: str, column: str) -> str:
    if not response.strip():
        raise BadRow("empty_response", column, "the response is empty", "Write one or remove the row")
    return response


def _read_messages(value: Any, column: str) -> list[Message]:
    if not isinstance(value, list):
        _malformed(column, f"it is {_shown(value)}, not a list of messages")
    if not value:
        _malformed(column, "the list of messages is empty")
    return [_read_message(message, f"{column}[{index}]") for index, message in enumerate(value)]


def _read_message(message: Any, place: str) -> Message:
    if not isinstance(message, Mapping):
        _malformed(place, f"it is {_shown(message)}, not a message")
    for key in ("role", "content"):
        if message.get(key) is None:
            hint = ": these are other names for role and content" if {"from", "value"} & set(message) else ""
            _malformed(place, f"it has no {key}, only {_names(message)}{hint}")
    extra = [key for key, value in message.items() if key not in ("role", "content") and value is not None]
    if extra:  # tool calls, names, images: a template may print them, and we would not
        _malformed(place, f"its key {extra[0]} is not read")
    role, content = message["role"], message["content"]
    if role not in ROLES:
        _malformed(place, f"role is {_shown(role)}; allowed are {', '.join(ROLES)}")
    return {"role": role, "content": _read_text(content, f"{place}.content")}


def _read_text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise BadRow("not_text", column, f"{_shown(value)} is not text", "Make it a string")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise BadRow(
            "not_text",
            column,
            f"character {error.start + 1} is half of a surrogate pair and no text",
            "Repair the escape, e.g. \\ud83d\\ude00 for one emoji",
        ) from error
    return value


def _required(values: Mapping[str, Any], column: str) -> Any:
    if column not in values:
        raise BadRow(
            "missing_column",
            column,
            f"there is no such column; the row has {_names(values)}",
            f"Add it, or map another one: `columns: {{{column}: NAME}}`",
        )
    return values[column]


def _others(values: Mapping[str, Any], *used: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in used}


def _malformed(place: str, problem: str) -> NoReturn:
    raise BadRow(
        "malformed_messages", place, problem, 'Write [{"role": "user", "content": "..."}, ...] with these two keys only'
    )


def _names(values: Mapping[str, Any]) -> str:
    return ", ".join(map(str, values)) or "no columns"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
