"""Every kind of bad row and bad line: the message that names it, and the count when it is skipped."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from reward_models.chat import Text
from reward_models.errors import ChatFormatError
from rlhf.config.data import DataConfig
from rlhf.data import Tokens, load_rows
from rlhf.data.messages import Reason
from rlhf.errors import DataError

USER = {"role": "user", "content": "Hello"}
REPLY = {"role": "assistant", "content": "Hi there"}
GOOD: dict[str, dict[str, Any]] = {
    "demonstrations": {"prompt": "Where is my parcel?", "completion": "It arrives today."},
    "preferences": {"prompt": "Where is my parcel?", "chosen": "It arrives today.", "rejected": "No idea."},
    "prompts": {"prompt": "Where is my parcel?"},
}

# kind, the bad row (a dict, or a line as it stands in the file), reason, the message after "rows.jsonl, line 2"
BAD_ROWS: list[tuple[str, Any, str, str]] = [
    # lines
    (
        "prompts",
        '{"prompt": "x"',
        "unreadable",
        ": not JSON: Expecting ',' delimiter at character 16. Mend or remove it.",
    ),
    ("prompts", "prompt: x", "unreadable", ": not JSON: Expecting value at character 1."),
    ("prompts", '["x"]', "unreadable", ": a JSON list instead of an object {column: value, ...}."),
    ("prompts", b'{"prompt": "caf\xe9"}', "unreadable", ": byte 16 is not UTF-8."),
    # missing columns
    (
        "demonstrations",
        {"prompt": "x", "answer": "y"},
        "missing_column",
        ", column completion: there is no such column; the row has prompt, answer. "
        "Add it, or map another one: `columns: {completion: answer}`.",
    ),
    ("demonstrations", {}, "missing_column", ", column prompt: there is no such column; the row has no columns."),
    ("preferences", {"prompt": "x", "chosen": "y"}, "missing_column", ", column rejected: there is no such column;"),
    (
        "preferences",
        {"chosen": "y", "rejected": "z"},
        "missing_column",
        ", column prompt: there is no such column, and chosen is plain text, so that the prompt",
    ),
    ("prompts", {"text": "x"}, "missing_column", ", column prompt: there is no such column; the row has text."),
    (
        "prompts",
        {"prompt": "x", "completions": "y"},
        "reserved_column",
        ", column completions: reward functions receive an argument of this name already. "
        "Rename it: `columns: {reference: completions}`.",
    ),
    # not text
    ("demonstrations", {"prompt": "x", "completion": None}, "not_text", ", column completion: None is not text."),
    ("demonstrations", {"prompt": 7, "completion": "y"}, "not_text", ", column prompt: 7 is not text."),
    (
        "prompts",
        '{"prompt": "half a smile \\ud83d"}',
        "not_text",
        ", column prompt: character 14 is half of a surrogate pair and no text.",
    ),
    (
        "demonstrations",
        {"messages": [USER, {"role": "assistant", "content": [{"type": "image", "url": "x.png"}]}]},
        "not_text",
        ", column messages[1].content: [{'type': 'image', 'url': 'x.png'}] is not text.",
    ),
    # messages
    ("demonstrations", {"messages": ["Hello"]}, "malformed_messages", ", column messages[0]: it is 'Hello', not a"),
    (
        "demonstrations",
        {"messages": "Hello"},
        "malformed_messages",
        ", column messages: it is 'Hello', not a list of messages. "
        'Write [{"role": "user", "content": "..."}, ...] with these two keys only.',
    ),
    ("demonstrations", {"messages": []}, "malformed_messages", ", column messages: the list of messages is empty."),
    (
        "demonstrations",
        {"messages": [{"from": "human", "value": "Hello"}]},
        "malformed_messages",
        ", column messages[0]: it has no role, only from, value, which `format: sharegpt` reads.",
    ),
    (
        "demonstrations",
        {"messages": [USER, {"role": "assistant", "content": None}]},
        "malformed_messages",
        ", column messages[1]: it has no content, only role, content.",
    ),
    (
        "demonstrations",
        {"messages": [USER, {"role": "bot", "content": "Hi"}]},
        "malformed_messages",
        ", column messages[1]: role is 'bot'; allowed are system, developer, user, assistant, tool. Rename it;",
    ),
    (
        "demonstrations",
        {"messages": [USER, {**REPLY, "reasoning": "Hm."}]},
        "malformed_messages",
        ", column messages[1]: its key reasoning is not read. Write reasoning into the content, or leave the key out.",
    ),
    (
        "demonstrations",
        {"messages": [USER, {**REPLY, "tool_calls": ["search"]}, USER, REPLY]},
        "malformed_messages",
        ', column messages[1]: its tool_calls hold \'search\'. Write {"type": "function", "function": {"name":',
    ),
    (
        "demonstrations",
        {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{"name": "search"}]}]},
        "malformed_messages",
        ", column messages: the last message only calls tools, and what is learnt is text. Write the call into",
    ),
    (
        "demonstrations",
        {"messages": [USER, REPLY, USER]},
        "malformed_messages",
        ", column messages: the conversation ends with the user, not with the assistant.",
    ),
    (
        "demonstrations",
        {"messages": [USER, REPLY, REPLY]},
        "malformed_messages",
        ", column messages: the prompt ends with the assistant, so that there is nothing to respond to.",
    ),
    (
        "demonstrations",
        {"prompt": "Hello", "completion": [USER]},
        "malformed_messages",
        ", column completion: the last message is the user's, not the assistant's.",
    ),
    (
        "demonstrations",
        {"prompt": "Good morning", "completion": [USER, REPLY]},
        "malformed_messages",
        ", column completion: it has 2 messages that do not begin with the row's prompt.",
    ),
    (
        "preferences",
        {"chosen": [USER, REPLY], "rejected": [{**USER, "content": "Bye"}, {**REPLY, "content": "So long"}]},
        "malformed_messages",
        ", column rejected: chosen and rejected have no message of the user in common at their beginning, so that",
    ),
    (
        "prompts",
        {"prompt": [USER, REPLY]},
        "malformed_messages",
        ", column prompt: the prompt ends with the assistant,",
    ),
    # nothing to answer, nothing answered
    (
        "prompts",
        {"prompt": " \n"},
        "no_prompt",
        ", column prompt: there is no text before the response. Write a prompt or remove the row.",
    ),
    (
        "demonstrations",
        {"prompt": [{**USER, "content": ""}], "completion": "y"},
        "no_prompt",
        ", column prompt: there is",
    ),
    ("demonstrations", {"messages": [REPLY]}, "no_prompt", ", column messages: there is no text before the response."),
    (
        "demonstrations",
        {"prompt": "x", "completion": ""},
        "empty_response",
        ", column completion: the response is empty. Write one or remove the row.",
    ),
    (
        "preferences",
        {"prompt": "x", "chosen": "y", "rejected": "\t"},
        "empty_response",
        ", column rejected: the response",
    ),
    (
        "demonstrations",
        {"messages": [USER, {**REPLY, "content": " "}]},
        "empty_response",
        ", column messages: the resp",
    ),
    # pairs
    (
        "preferences",
        {"prompt": "x", "chosen": "y", "rejected": "y "},
        "identical_pair",
        ", column rejected: chosen and rejected are the same text. Change one or remove the row.",
    ),
    (
        "preferences",
        {"chosen": [USER, REPLY], "rejected": [USER, REPLY]},
        "identical_pair",
        ", column rejected: chosen and",
    ),
    # lengths: 40 "tokens" (characters, below) are allowed
    (
        "demonstrations",
        {"prompt": "x" * 30, "completion": "y" * 11},
        "too_long",
        ", column completion: 41 tokens with its prompt, 40 are allowed. Shorten it, or raise sft.max_tokens.",
    ),
    (
        "preferences",
        {"prompt": "x" * 30, "chosen": "y", "rejected": "z" * 20},
        "too_long",
        ", column rejected: 50 tokens with its prompt, 40 are allowed.",
    ),
    (
        "prompts",
        {"prompt": "x" * 41},
        "too_long",
        ", column prompt: 41 tokens, 40 are allowed. Shorten it, or raise ppo.rollout.max_prompt_tokens.",
    ),
    (
        "prompts",
        {"prompt": "unrenderable"},
        "refused_by_template",
        ", column prompt: the chat template refuses it: roles must alternate. Mend or remove the row.",
    ),
    (
        "prompts",
        {"prompt": [{"role": "system", "content": "unrenderable"}, USER]},
        "refused_by_template",
        ", column prompt: the chat template refuses it: roles must alternate. If it knows no system role, `fold_sys",
    ),
    # other people's shapes, with the key that reads them
    (
        "demonstrations",
        {"conversations": [{"from": "human", "value": "Hello"}]},
        "missing_column",
        ", column prompt: there is no such column; the row has conversations. `format: sharegpt` reads conversations.",
    ),
    (
        "demonstrations",
        {"instruction": "x", "input": "", "output": "y"},
        "missing_column",
        ", column prompt: there is no such column; the row has instruction, input, output. `format: alp",
    ),
    (
        "preferences",
        {"chosen": "\n\nHuman: x\n\nAssistant: y", "rejected": "\n\nHuman: x\n\nAssistant: z"},
        "missing_column",
        ", column prompt: there is no such column, and chosen is plain text, so that the prompt cannot be taken from "
        "it; the row has chosen, rejected. `format: hh_rlhf` reads it, or add it,",
    ),
    (
        "preferences",
        {"prompt": "x", "completion": "y", "label": True},
        "missing_column",
        ", column chosen: there is no such column; the row has prompt, completion, label. `format: kto` reads prompt,",
    ),
    (
        "demonstrations",
        {"prompt": "x", "response": "y"},
        "missing_column",
        ", column completion: there is no such column; the row has prompt, response. "
        "Add it, or map another one: `columns: {completion: response}`.",
    ),
]


def encode(prompt: Text, response: str | None) -> Tokens:
    if "unrenderable" in (prompt, prompt[0]["content"] if isinstance(prompt, list) else ""):
        raise ChatFormatError("roles must alternate")
    text = prompt if isinstance(prompt, str) else "".join(message["content"] for message in prompt)
    return Tokens([ord(character) for character in text], [ord(character) for character in response or ""])


def write_lines(path: Path, rows: list[Any]) -> Path:
    lines = [
        row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode() for row in rows
    ]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(**keys: Any) -> DataConfig:
    return DataConfig(sources=[{"path": "rows.jsonl"}], validation_fraction=0, **keys)


@pytest.mark.parametrize(("kind", "row", "reason", "message"), BAD_ROWS)
def test_a_bad_row_is_an_error_that_names_place_column_reason_and_way_out(
    folder: Path, kind: Any, row: Any, reason: str, message: str
) -> None:
    write_lines(folder / "rows.jsonl", [GOOD[kind], row])
    with pytest.raises(DataError) as caught:
        load_rows(config(), kind, encode=encode, max_tokens=40)
    assert str(caught.value).startswith(f"rows.jsonl, line 2{message}")
    assert str(caught.value).endswith("`on_bad_row: skip` leaves bad rows out and counts them.")


@pytest.mark.parametrize(("kind", "row", "reason", "message"), BAD_ROWS)
def test_a_bad_row_is_skipped_and_counted(folder: Path, kind: Any, row: Any, reason: str, message: str) -> None:
    write_lines(folder / "rows.jsonl", [GOOD[kind], row, row])
    splits = load_rows(config(on_bad_row="skip"), kind, encode=encode, max_tokens=40)
    assert splits.skipped == {reason: 2}
    assert [row.prompt for row in splits.train] == ["Where is my parcel?"]
    assert splits.examples[reason].startswith(f"rows.jsonl, line 2{message}")
    assert splits.summary() == f"1 row for training, 2 left out (2 {reason})"


def test_the_table_covers_every_reason_and_at_least_24_messages() -> None:
    assert {reason for _, _, reason, _ in BAD_ROWS} == set(get_args(Reason))
    assert len({message for _, _, _, message in BAD_ROWS}) >= 24


def test_an_error_counts_the_other_bad_rows(folder: Path) -> None:
    empty, short = {"prompt": "x", "completion": ""}, {"prompt": "x"}
    write_lines(folder / "rows.jsonl", [GOOD["demonstrations"], short, empty, empty])
    with pytest.raises(DataError, match=r"line 2, .* 3 bad rows in all \(2 empty_response, 1 missing_column\)"):
        load_rows(config(), "demonstrations")


def test_lines_are_counted_as_an_editor_counts_them(folder: Path) -> None:
    write_lines(folder / "rows.jsonl", [GOOD["prompts"], "", "", {"prompt": ""}])
    with pytest.raises(DataError, match=r"^rows\.jsonl, line 4, column prompt"):
        load_rows(config(), "prompts")


def test_a_row_as_long_as_allowed_is_good(folder: Path) -> None:
    write_lines(folder / "rows.jsonl", [{"prompt": "x" * 30, "completion": "y" * 10}])
    assert len(load_rows(config(), "demonstrations", encode=encode, max_tokens=40).train) == 1


def test_when_all_rows_are_bad_the_error_says_why(folder: Path) -> None:
    write_lines(folder / "rows.jsonl", [{"prompt": ""}, {"text": "x"}, {"text": "y"}])
    with pytest.raises(
        DataError,
        match=r"^rows\.jsonl: all 3 rows are bad \(2 missing_column, 1 no_prompt\)\. The first: rows\.jsonl, line 1, ",
    ):
        load_rows(config(on_bad_row="skip"), "prompts")
