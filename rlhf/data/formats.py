"""Other projects' shapes of a row, by the name that `format` gives them, turned into TRL's, which `parse.py` reads.

Called by `load.py` after columns are renamed. One row in, one row out; `kto`, which pairs rows, is in `kto.py`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from rlhf.config.data import Format
from rlhf.data.kto import read_kto
from rlhf.data.raw import WRONG_FORMAT, RawRow
from rlhf.data.rows import Kind

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
}
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")


class _NotOfThisFormat(Exception):
    """A row has not the shape that `format` names; the message says what is missing."""


def convert(rows: list[RawRow], name: Format, kind: Kind) -> list[RawRow]:
    """Turn rows of a named format into TRL's columns; a row that has another shape gets a problem.

    Args:
        rows: Raw rows, columns renamed.
        name: The format; `trl` changes nothing.
        kind: What the stage needs; only unpaired feedback (`kto`) depends on it.
    """
    if name == "trl":
        return rows
    if name == "kto":
        return read_kto(rows, kind)
    return [row if row.problem is not None else _converted(row, name, kind) for row in rows]


def _converted(row: RawRow, name: Format, kind: Kind) -> RawRow:
    try:
        return replace(row, values=_READERS[name](row.values, kind))
    except _NotOfThisFormat as error:
        has = ", ".join(row.values) or "no columns"
        return replace(row, values={}, problem=f"{WRONG_FORMAT}{name}: {error}; the row has {has}")


def _sharegpt(values: Mapping[str, Any], _: Kind) -> dict[str, Any]:
    """`conversations` of {from, value}, maybe `system`; a pair has `chosen` and `rejected` of the same kind.

    The column may also be called `messages`, and the keys role and content.
    """
    turns = values.get("conversations") or values.get("messages")
    pair = {side: values[side] for side in ("chosen", "rejected") if isinstance(values.get(side), Mapping | list)}
    if not turns and not pair:
        raise _NotOfThisFormat("there is no column conversations with turns")
    rest = _without(values, "conversations", "messages", "system", *pair)
    messages = [_sharegpt_turn(turn, f"conversations[{i}]") for i, turn in enumerate(turns or [])]
    if values.get("system"):
        messages.insert(0, {"role": "system", "content": values["system"]})
    if not pair:
        return {"messages": messages, **rest}
    sides = {side: [entry] if isinstance(entry, Mapping) else entry for side, entry in pair.items()}
    read = {side: [_sharegpt_turn(turn, side) for turn in entries] for side, entries in sides.items()}
    return {**({"prompt": messages} if messages else {}), **read, **rest}


def _sharegpt_turn(turn: Any, place: str) -> dict[str, Any]:
    speaker, said = (
        (turn.get("from", turn.get("role")), turn.get("value", turn.get("content")))
        if isinstance(turn, Mapping)
        else (None, None)
    )
    if speaker is None or said is None:
        raise _NotOfThisFormat(f"{place} is no {{from, value}}")
    role = _SHAREGPT_ROLES.get(str(speaker))
    if role is None:
        raise _NotOfThisFormat(f"{place} is from {speaker!r}; known are {', '.join(_SHAREGPT_ROLES)}")
    return {"role": role, "content": said}


def _alpaca(values: Mapping[str, Any], _: Kind) -> dict[str, Any]:
    """`instruction`, maybe `input`, `system` and `history`; `output`, or `chosen` and `rejected`.

    The instruction, a line break and the input are the prompt, as LLaMA-Factory joins them.
    """
    if not isinstance(values.get("instruction"), str):
        raise _NotOfThisFormat("there is no column instruction with text")
    question = "\n".join(part for part in (values["instruction"], values.get("input")) if part)
    prompt: list[dict[str, Any]] = [{"role": "user", "content": question}]
    history = values.get("history") or []
    if not all(isinstance(turn, list | tuple) and len(turn) == 2 for turn in history):
        raise _NotOfThisFormat("history is no list of [asked, answered]")
    for asked, answered in reversed(history):
        prompt[:0] = [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    if values.get("system"):
        prompt.insert(0, {"role": "system", "content": values["system"]})
    rest = _without(values, "instruction", "input", "output", "system", "history")
    if values.get("output") is not None:
        rest["completion"] = values["output"]
    return {"prompt": prompt if len(prompt) > 1 else question, **rest}


def _hh_rlhf(values: Mapping[str, Any], kind: Kind) -> dict[str, Any]:
    r"""`chosen` and `rejected` as one text each: "\n\nHuman: ...\n\nAssistant: ..." (Bai et al., 2022).

    A demonstration is the chosen one; a prompt is what comes before its last turn.
    """
    sides = {side: _hh_dialogue(values.get(side), side) for side in ("chosen", "rejected") if values.get(side)}
    if "chosen" not in sides:
        raise _NotOfThisFormat("there is no column chosen with text")
    rest = _without(values, "chosen", "rejected")
    return {**sides, **rest} if kind == "preferences" else {"messages": sides["chosen"], **rest}


def _hh_dialogue(text: Any, column: str) -> list[dict[str, Any]]:
    if not isinstance(text, str) or not _HH_TURN.match("\n\n" + text.lstrip()):
        raise _NotOfThisFormat(rf"{column} does not begin with \n\nHuman: or \n\nAssistant:")
    _, *parts = _HH_TURN.split("\n\n" + text.lstrip())
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]


def _without(values: Mapping[str, Any], *used: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in used}


_READERS: dict[Format, Callable[[Mapping[str, Any], Kind], dict[str, Any]]] = {
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "hh_rlhf": _hh_rlhf,
}
