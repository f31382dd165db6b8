"""From a raw row to a `Demonstration`, `Preference` or `Prompt`, or to the reason why it is none.

The shapes are those of TRL's data sets: `prompt` and `completion` (text, or lists of messages), `messages` (a
conversation whose last message is the response), `prompt`, `chosen` and `rejected`, or `chosen` and `rejected` alone
when both are conversations that begin alike. A null or empty column counts as absent, as joined tables have them. Other
shapes are turned into these by `formats.py`; messages are read in `messages.py`; lengths are checked in `validate.py`.
"""

from collections.abc import Mapping
from typing import Any

from reward_models.chat import Message, Text, to_messages
from rlhf.data.messages import BadRow, is_parts, malformed, names, read_messages, read_text
from rlhf.data.rows import Demonstration, Kind, Preference, Prompt, Row, after_turns

# Reward functions receive these by keyword; a column of the same name would be a second value for them.
RESERVED_COLUMNS = ("prompts", "completions", "completion_ids")
# Our column -> what others call it; only to say which one could be mapped.
_ALIASES = {
    "prompt": ("question", "query", "instruction", "text", "input", "problem"),
    "completion": ("response", "output", "answer", "reply", "target", "solution"),
    "chosen": ("accepted", "preferred", "better"),
    "rejected": ("dispreferred", "worse"),
}
# Columns that give another format away.
_FORMATS = {("conversations",): "sharegpt", ("instruction",): "alpaca", ("prompt", "completion", "label"): "kto"}


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
    if _reads_messages(values, "completion"):
        prompt, response = _split_conversation(values["messages"], "messages")
        return Demonstration(prompt, response, _others(values, "messages"))
    prompt_text = _read_prompt(values)
    turns, response = _read_response(values, "completion", prompt_text)
    return Demonstration(after_turns(prompt_text, turns), response, _others(values, "prompt", "completion"))


def _preference(values: Mapping[str, Any]) -> Preference:
    prompt = _read_prompt(values) if _has(values, "prompt") else _common_prompt(values)
    (chosen_turns, chosen), (rejected_turns, rejected) = (
        _read_response(values, column, prompt) for column in ("chosen", "rejected")
    )
    if chosen.strip() == rejected.strip() and chosen_turns == rejected_turns:
        raise BadRow(
            "identical_pair", "rejected", "chosen and rejected are the same text", "Change one or remove the row"
        )
    columns = _others(values, "prompt", "chosen", "rejected")
    return Preference(prompt, chosen, rejected, columns, chosen_turns, rejected_turns)


def _prompt(values: Mapping[str, Any]) -> Prompt:
    for column in RESERVED_COLUMNS:
        if column in values:
            raise BadRow(
                "reserved_column",
                column,
                "reward functions receive an argument of this name already",
                f"Rename it: `columns: {{reference: {column}}}`",
            )
    if not _reads_messages(values, "prompt"):
        return Prompt(_read_prompt(values), _others(values, "prompt"))
    messages = read_messages(values["messages"], "messages")
    columns = _others(values, "messages", "prompt")
    if messages[-1]["role"] == "assistant":  # a demonstration used as a prompt: its reply stays at hand as a reference
        prompt, columns["completion"] = _split_conversation(messages, "messages")
        return Prompt(prompt, columns)
    return Prompt(_checked_prompt(messages, "messages"), columns)


def _common_prompt(values: Mapping[str, Any]) -> list[Message]:
    """What two conversations have in common, up to a message that the assistant answers."""
    for column in ("chosen", "rejected"):
        if isinstance(_required(values, column), str):
            hint = "`format: hh_rlhf` reads it, or " if values[column].lstrip().startswith("Human:") else ""
            raise BadRow(
                "missing_column",
                "prompt",
                f"there is no such column, and {column} is plain text, so that the prompt cannot be taken from it; "
                f"the row has {names(values)}",
                f"{hint}add it, map another one (`columns: {{prompt: NAME}}`), or make chosen and rejected lists of "
                "messages",
            )
    prompt, _ = _split_conversation(values["chosen"], "chosen")
    other, _ = _split_conversation(values["rejected"], "rejected")
    shared = next((i for i, (a, b) in enumerate(zip(prompt, other, strict=False)) if a != b), len(prompt))
    common = prompt[: min(shared, len(other))]
    while common and common[-1]["role"] == "assistant":
        common = common[:-1]
    if not any(message["role"] == "user" for message in common):
        malformed(
            "rejected",
            "chosen and rejected have no message of the user in common at their beginning, so that they answer "
            "different prompts",
            "Make them begin alike, or remove the row",
        )
    return common


def _read_prompt(values: Mapping[str, Any]) -> Text:
    value = _required(values, "prompt")
    if isinstance(value, list | tuple | Mapping):
        return _checked_prompt(read_messages(value, "prompt"), "prompt")
    return _checked_prompt(read_text(value, "prompt"), "prompt")


def _read_response(values: Mapping[str, Any], column: str, prompt: Text) -> tuple[list[Message], str]:
    """The turns between the prompt and the last response, mostly none, and the response."""
    value = _required(values, column)
    turns: list[Message] = []
    if isinstance(value, Mapping) and "role" in value:
        value = [value]
    if isinstance(value, list) and not is_parts(value):
        *turns, last = read_messages(value, column)
        if last["role"] != "assistant":
            malformed(column, f"the last message is the {last['role']}'s, not the assistant's")
        before = to_messages(prompt)
        if turns[: len(before)] == before:
            turns = turns[len(before) :]
        if turns and turns[0]["role"] != "assistant":
            malformed(column, f"it has {len(value)} messages that do not begin with the row's prompt")
        value = last["content"]
    return turns, _checked_response(read_text(value, column), column)


def _split_conversation(value: Any, column: str) -> tuple[list[Message], str]:
    """A conversation's messages before the last one, and the text of the last one, which is the assistant's."""
    messages = read_messages(value, column)
    if messages[-1]["role"] != "assistant":
        malformed(
            column,
            f"the conversation ends with the {messages[-1]['role']}, not with the assistant",
            "Remove what follows the last response",
        )
    prompt = messages[:-1]
    _checked_prompt(prompt, column)
    if "tool_calls" in messages[-1] and not messages[-1]["content"].strip():
        malformed(
            column,
            "the last message only calls tools, and what is learnt is text",
            "Write the call into its content in the form that the model is to write, or remove the row",
        )
    return prompt, _checked_response(messages[-1]["content"], column)


def _checked_prompt(prompt: Text, column: str) -> Text:
    contents = [prompt] if isinstance(prompt, str) else [message["content"] for message in prompt]
    if not any(content.strip() for content in contents):
        raise BadRow("no_prompt", column, "there is no text before the response", "Write a prompt or remove the row")
    if isinstance(prompt, list) and prompt[-1]["role"] == "assistant":
        malformed(
            column,
            "the prompt ends with the assistant, so that there is nothing to respond to",
            "Join messages of the assistant that follow each other, or remove the last one",
        )
    return prompt


def _checked_response(response: str, column: str) -> str:
    if not response.strip():
        raise BadRow("empty_response", column, "the response is empty", "Write one or remove the row")
    return response


def _reads_messages(values: Mapping[str, Any], instead: str) -> bool:
    """Whether a row is a conversation, and not a prompt with the column `instead`."""
    return (_has(values, "messages") and not _has(values, instead)) or ("messages" in values and "prompt" not in values)


def _has(values: Mapping[str, Any], column: str) -> bool:
    return column in values and values[column] is not None and values[column] not in ("", [])


def _required(values: Mapping[str, Any], column: str) -> Any:
    if column in values:
        return values[column]
    like = [name for name in _ALIASES.get(column, ()) if name in values] or ["NAME"]
    way_out = f"Add it, or map another one: `columns: {{{column}: {like[0]}}}`"
    for needed, format in _FORMATS.items():
        if set(needed) <= set(values):
            way_out = f"`format: {format}` reads {', '.join(needed)}"
    raise BadRow("missing_column", column, f"there is no such column; the row has {names(values)}", way_out)


def _others(values: Mapping[str, Any], *used: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in used}
