"""Texts and messages of one row, as they are written in a data set, checked; and the error for a row that is bad.

The lower half of `parse.py`, which knows the columns. Null keys of a message count as absent: tables give every message
the keys of all. So do empty ones, such as `tool_calls: []`.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal, NoReturn, TypeAlias

from reward_models.chat import Message

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
# What a message may have besides role and content, by role; the chat template renders it.
_FURTHER_KEYS = {"assistant": ("tool_calls",), "tool": ("tool_call_id", "name")}


class BadRow(Exception):
    """One row cannot be used. `validate.py` turns it into an error or counts it."""

    def __init__(self, reason: Reason, column: str | None, problem: str, way_out: str) -> None:
        super().__init__(problem)
        self.reason: Reason = reason
        self.column = column
        self.problem = problem
        self.way_out = way_out


def read_messages(value: Any, column: str) -> list[Message]:
    """Read a list of messages, or the dict of lists that some tables make of one."""
    if isinstance(value, Mapping) and value and all(isinstance(entry, list) for entry in value.values()):
        value = [dict(zip(value, entries, strict=False)) for entries in zip(*value.values(), strict=False)]
    if not isinstance(value, list | tuple):
        malformed(column, f"it is {shown(value)}, not a list of messages")
    if not value:
        malformed(column, "the list of messages is empty")
    return [_read_message(message, f"{column}[{index}]") for index, message in enumerate(value)]


def read_text(value: Any, column: str) -> str:
    """Read a text, or a list of parts {type: text, text: ...}."""
    if is_parts(value):
        value = "".join(part["text"] for part in value)
    if not isinstance(value, str):
        raise BadRow("not_text", column, f"{shown(value)} is not text", "Make it a string")
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


def is_parts(value: Any) -> bool:
    """Whether a value is one text in parts, [{type: text, text: ...}], and nothing but text."""
    parts = [part for part in value if isinstance(part, Mapping)] if isinstance(value, list) else []
    return bool(parts) and len(parts) == len(value) and all(isinstance(part.get("text"), str) for part in parts)


def folded(messages: list[Message]) -> list[Message]:
    """The messages without a system role: its text stands at the head of the next message of the user."""
    first, *rest = messages
    if first["role"] not in ("system", "developer") or not rest or rest[0]["role"] != "user":
        return messages
    return [{"role": "user", "content": f"{first['content']}\n\n{rest[0]['content']}"}, *rest[1:]]


def malformed(place: str, problem: str, way_out: str | None = None) -> NoReturn:
    """Refuse a row because of its messages."""
    raise BadRow(
        "malformed_messages",
        place,
        problem,
        way_out or 'Write [{"role": "user", "content": "..."}, ...] with these two keys only',
    )


def names(values: Mapping[str, Any]) -> str:
    """The columns of a row, for a message."""
    return ", ".join(map(str, values)) or "no columns"


def shown(value: Any) -> str:
    """A value, cut to a length that a message can hold."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _read_message(message: Any, place: str) -> Message:
    if not isinstance(message, Mapping):
        malformed(place, f"it is {shown(message)}, not a message")
    given = {key: value for key, value in message.items() if value is not None and (value or key == "content")}
    if "content" not in given and "tool_calls" in given:  # OpenAI's form of a call without words
        given["content"] = ""
    for key in ("role", "content"):
        if key not in given:
            hint = ", which `format: sharegpt` reads" if {"from", "value"} & set(message) else ""
            malformed(place, f"it has no {key}, only {names(message)}{hint}")
    role, content = given["role"], given["content"]
    if role not in ROLES:
        allowed = ", ".join(ROLES)
        malformed(place, f"role is {shown(role)}; allowed are {allowed}", "Rename it; `format: sharegpt` does so")
    further = {key: value for key, value in given.items() if key not in ("role", "content")}
    for key in further:  # audio, images, reasoning: a template may print them, and we would not
        if key not in _FURTHER_KEYS.get(role, ()):
            malformed(place, f"its key {key} is not read", f"Write {key} into the content, or leave the key out")
    if "tool_calls" in further:
        further["tool_calls"] = [_read_call(call, place) for call in further["tool_calls"]]
    return {"role": role, "content": read_text(content, f"{place}.content"), **further}


def _read_call(call: Any, place: str) -> dict[str, Any]:
    """A tool call with arguments as a mapping, which is what chat templates print; OpenAI's are JSON text."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        malformed(
            place,
            f"its tool_calls hold {shown(call)}",
            'Write {"type": "function", "function": {"name": "...", "arguments": {...}}}',
        )
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            pass  # some functions take one text
    read = {"type": "function", "function": {"name": function["name"], "arguments": arguments or {}}}
    return {**read, "id": call["id"]} if call.get("id") else read
