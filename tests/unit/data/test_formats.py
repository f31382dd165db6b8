"""Other people's shapes of a row: ShareGPT, Alpaca, hh-rlhf and KTO, each by its name."""

import json
from pathlib import Path
from typing import Any

import pytest

from rlhf.config.data import DataConfig
from rlhf.data import Demonstration, Preference, Prompt, Splits, load_rows
from rlhf.errors import DataError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(format: str, kind: Any, *rows: dict[str, Any], **keys: Any) -> Splits[Any]:
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_rows(DataConfig(path="rows.jsonl", format=format, validation_fraction=0, **keys), kind)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}
SHAREGPT = {"id": "a", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}
HUMAN = "\n\nHuman: Hi\n\nAssistant: Hello there\n\nHuman: Human: what is it?\n\nAssistant:"


@pytest.mark.parametrize(
    ("format", "kind", "row", "expected"),
    [
        ("sharegpt", "demonstrations", SHAREGPT, Demonstration([user("Hi")], "Hello", {"id": "a"})),
        (
            "sharegpt",
            "demonstrations",
            {"messages": [{"role": "human", "content": "Hi"}, {"role": "gpt", "content": "Hello"}]},
            Demonstration([user("Hi")], "Hello"),
        ),
        ("sharegpt", "prompts", SHAREGPT, Prompt([user("Hi")], {"id": "a", "completion": "Hello"})),
        (
            "sharegpt",
            "demonstrations",
            {**SHAREGPT, "system": "Be brief.", "id": None},
            Demonstration([SYSTEM, user("Hi")], "Hello", {"id": None}),
        ),
        (
            "sharegpt",
            "preferences",
            {
                "conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi"}],
                "chosen": {"from": "gpt", "value": "Hello"},
                "rejected": {"from": "gpt", "value": "What"},
            },
            Preference([SYSTEM, user("Hi")], "Hello", "What"),
        ),
        (
            "sharegpt",
            "preferences",
            {
                "chosen": SHAREGPT["conversations"],
                "rejected": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "What"}],
            },
            Preference([user("Hi")], "Hello", "What"),
        ),
        (
            "alpaca",
            "demonstrations",
            {"instruction": "Add.", "input": "1 + 1", "output": "2"},
            Demonstration("Add.\n1 + 1", "2"),
        ),
        (
            "alpaca",
            "demonstrations",
            {"instruction": "Say x.", "input": "", "output": "x"},
            Demonstration("Say x.", "x"),
        ),
        (
            "alpaca",
            "demonstrations",
            {"instruction": "c", "output": "d", "system": "Be brief.", "history": [["w", "x"], ["a", "b"]]},
            Demonstration(
                [SYSTEM, user("w"), assistant("x"), user("a"), assistant("b"), user("c")],
                "d",
            ),
        ),
        (
            "alpaca",
            "preferences",
            {"instruction": "Add.", "input": None, "chosen": "2", "rejected": "3"},
            Preference("Add.", "2", "3"),
        ),
        ("alpaca", "prompts", {"instruction": "Add.", "output": "2"}, Prompt("Add.", {"completion": "2"})),
        (
            "hh_rlhf",
            "preferences",
            {"chosen": f"{HUMAN} A riddle.\n", "rejected": f"{HUMAN} A: B"},
            Preference([user("Hi"), assistant("Hello there"), user("Human: what is it?")], "A riddle.", "A: B"),
        ),
        (
            "hh_rlhf",
            "preferences",
            {"chosen": f"{HUMAN} A riddle.", "rejected": "\n\nHuman: Hi\n\nAssistant: Go away"},
            Preference(
                [user("Hi")],
                "A riddle.",
                "Go away",
                chosen_turns=[assistant("Hello there"), user("Human: what is it?")],
            ),
        ),
        (
            "hh_rlhf",
            "demonstrations",
            {"chosen": "Human: Hi\n\nAssistant: Yes", "rejected": ""},
            Demonstration([user("Hi")], "Yes"),
        ),
    ],
)
def test_a_row_of_a_named_format(format: str, kind: Any, row: dict[str, Any], expected: Any) -> None:
    assert load(format, kind, row).train == [expected]


@pytest.mark.parametrize(
    ("format", "kind", "row", "message"),
    [
        ("sharegpt", "demonstrations", {"prompt": "x"}, "there is no column conversations with turns; the row has pro"),
        (
            "sharegpt",
            "demonstrations",
            {"conversations": [{"from": "narrator", "value": "x"}]},
            "conversations[0] is from 'narrator'; known are human, user, gpt,",
        ),
        ("sharegpt", "demonstrations", {"conversations": ["x"]}, "conversations[0] is no {from, value}; the row"),
        ("alpaca", "demonstrations", {"prompt": "x"}, "there is no column instruction with text; the row has prompt"),
        ("alpaca", "demonstrations", {"instruction": "x", "history": ["y"]}, "history is no list of [asked, answered]"),
        ("hh_rlhf", "preferences", {"chosen": "Hi", "rejected": "Ho"}, r"chosen does not begin with \n\nHuman: or"),
        ("kto", "demonstrations", {"prompt": "x", "completion": "y"}, "there is no label; the row has prompt, compl"),
        ("kto", "preferences", {"prompt": "x", "completion": "y", "label": 7}, "label is 7; allowed are true and fal"),
    ],
)
def test_a_row_of_another_shape_is_a_bad_row(format: str, kind: Any, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        load(format, kind, row)
    assert str(caught.value).startswith(f"rows.jsonl, line 1: not of format {format}: {message}")
    assert "Mend or remove it, or name another `format`." in str(caught.value)


KTO = [
    {"prompt": "a", "completion": "a good", "label": True, "id": 1},
    {"prompt": "b", "completion": "b poor", "label": False, "id": 2},
    {"prompt": "a", "completion": "a poor", "label": False, "id": 3},
    {"prompt": "c", "completion": "c good", "label": True, "id": 4},
    {"prompt": "a", "completion": "a poor too", "label": False, "id": 5},
]


def test_unpaired_feedback_gives_desired_demonstrations() -> None:
    splits = load("kto", "demonstrations", *KTO)
    assert {row.response for row in splits.train} == {"a good", "c good"}
    assert splits.skipped == {"undesired": 3}
    assert splits.examples["undesired"].startswith("rows.jsonl, line 2: its label is false")


def test_unpaired_feedback_gives_pairs_of_one_prompt() -> None:
    splits = load("kto", "preferences", *KTO)
    assert splits.train == [Preference("a", "a good", "a poor", {"id": 1})]
    assert splits.skipped == {"unpaired": 3}
    with pytest.raises(
        DataError, match=r"all 2 rows are bad \(2 unpaired\)\. The first: rows\.jsonl, line 1: no compl"
    ):
        load("kto", "preferences", KTO[0], KTO[1])


def test_the_place_of_a_pair_names_both_rows() -> None:
    bad = {"prompt": "a", "completion": "", "label": False}
    with pytest.raises(DataError, match=r"^rows\.jsonl, line 1 \(and line 2\), column rejected: the response is empty"):
        load("kto", "preferences", KTO[0], bad)


def test_unpaired_feedback_as_prompts_keeps_its_label_for_reward_functions() -> None:
    assert load("kto", "prompts", KTO[0]).train == [
        Prompt("a", {"completion": "a good", "label": True, "id": 1}),
    ]


def test_columns_are_renamed_before_the_format_is_read() -> None:
    row = {"dialogue": SHAREGPT["conversations"]}
    assert load("sharegpt", "prompts", row, columns={"conversations": "dialogue"}).train[0].prompt == [user("Hi")]


def test_a_system_message_can_be_folded_into_the_first_one_of_the_user() -> None:
    rows = [
        {"prompt": [SYSTEM, user("Hi")]},
        {"prompt": [user("Ho")]},
        {"prompt": "Plain"},
    ]
    folded = load("trl", "prompts", *rows, fold_system=True).train
    assert sorted(map(str, (row.prompt for row in folded))) == sorted(
        map(str, ([user("Be brief.\n\nHi")], [user("Ho")], "Plain"))
    )
    assert [row.prompt for row in load("trl", "prompts", rows[0]).train] == [[SYSTEM, user("Hi")]]
