"""The front door: disjoint splits, limits, mixes, halves, content hashes, and errors when nothing is left."""

import json
import random
from pathlib import Path
from typing import Any

import datasets
import pytest

import rlhf.data.load
from rlhf.config.data import DataConfig, PromptDataConfig
from rlhf.data import Prompt, Tokens, content_hash, load_rows
from rlhf.errors import DataError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, rows: list[dict[str, Any]]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def numbered(count: int, name: str = "p", **columns: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"{name}{number}", **columns} for number in range(count)]


def config(*paths: str, **keys: Any) -> DataConfig:
    return DataConfig(sources=[{"path": path} for path in paths], **keys)


def prompts(rows: list[Prompt]) -> list[Any]:
    return [row.prompt for row in rows]


def test_no_prompt_stands_in_two_splits() -> None:
    rows = numbered(200) * 3 + [{"prompt": [{"role": "user", "content": f"p{number} "}]} for number in range(200)]
    write("rows.jsonl", rows)
    splits = load_rows(config("rows.jsonl", validation_fraction=0.2, test_fraction=0.2), "prompts")

    def texts(rows: list[Prompt]) -> set[str]:
        return {row.prompt if isinstance(row.prompt, str) else row.prompt[0]["content"].strip() for row in rows}

    train, validation, test = texts(splits.train), texts(splits.validation), texts(splits.test)
    assert train | validation | test == {f"p{number}" for number in range(200)}
    assert not train & validation
    assert not train & test
    assert not validation & test
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 800
    assert min(len(train), len(validation), len(test)) > 20


def test_the_order_of_rows_does_not_matter() -> None:
    rows = numbered(100)
    write("rows.jsonl", rows)
    random.Random(0).shuffle(rows)
    write("shuffled.jsonl", rows)
    keys: dict[str, Any] = {"validation_fraction": 0.2, "test_fraction": 0.2, "max_rows": 60, "subset": "all"}
    assert load_rows(config("rows.jsonl", **keys), "prompts") == load_rows(config("shuffled.jsonl", **keys), "prompts")


def test_a_limit_is_a_prefix_of_a_larger_one() -> None:
    write("rows.jsonl", numbered(100))
    few, more = (load_rows(config("rows.jsonl", max_rows=limit), "prompts") for limit in (30, 60))
    assert len(few.train) + len(few.validation) == 30
    assert few.train == more.train[: len(few.train)]


def test_a_limit_above_the_number_of_rows_changes_nothing() -> None:
    write("rows.jsonl", numbered(40))
    assert load_rows(config("rows.jsonl", max_rows=41), "prompts") == load_rows(config("rows.jsonl"), "prompts")


def test_halves_share_no_prompt_and_make_the_whole() -> None:
    write("rows.jsonl", numbered(100))
    first, second, whole = (
        load_rows(config("rows.jsonl", subset=subset), "prompts") for subset in ("first_half", "second_half", "all")
    )
    assert not set(prompts(first.train)) & set(prompts(second.train))
    assert set(prompts(first.train)) | set(prompts(second.train)) == set(prompts(whole.train))
    assert set(prompts(first.validation)) | set(prompts(second.validation)) == set(prompts(whole.validation))


def test_sources_are_mixed_by_weight_and_held_out_rows_are_not_repeated() -> None:
    write("a.jsonl", numbered(200, "a"))
    write("b.jsonl", numbered(40, "b"))
    sources = [{"path": "a.jsonl", "weight": 3}, {"path": "b.jsonl", "weight": 1}]
    splits = load_rows(DataConfig(sources=sources, validation_fraction=0.25), "prompts")
    from_a = [prompt for prompt in prompts(splits.train) if prompt.startswith("a")]
    from_b = [prompt for prompt in prompts(splits.train) if prompt.startswith("b")]
    assert len(from_b) == pytest.approx(len(from_a) / 3, abs=0.5)
    assert len(from_a) == len(set(from_a))
    assert len(from_b) > len(set(from_b))
    assert len(splits.validation) == len(set(prompts(splits.validation)))
    assert len(set(prompts(splits.train))) + len(splits.validation) == 240


def test_prompts_hold_nothing_out_unless_asked() -> None:
    write("rows.jsonl", numbered(100))
    splits = load_rows(PromptDataConfig(path="rows.jsonl"), "prompts")
    assert (len(splits.train), splits.validation, splits.test) == (100, [], [])
    assert splits.summary() == "100 rows for training"
    asked = load_rows(PromptDataConfig(path="rows.jsonl", validation_fraction=0.2, test_fraction=0.2), "prompts")
    sizes = [len(rows) for rows in (asked.train, asked.validation, asked.test)]
    assert sum(sizes) == 100
    assert asked.summary() == (
        f"{sizes[0]} rows for training, {sizes[1]} held out for validation, {sizes[2]} held out for testing"
    )


def test_every_row_has_every_column() -> None:
    write("a.jsonl", [{"prompt": "x", "topic": "t"}])
    write("b.jsonl", [{"prompt": "y", "answer": 4}])
    splits = load_rows(config("a.jsonl", "b.jsonl", validation_fraction=0), "prompts")
    assert sorted((row.prompt, dict(row.columns)) for row in splits.train) == [
        ("x", {"answer": None, "topic": "t"}),
        ("y", {"answer": 4, "topic": None}),
    ]


def test_skipped_rows_of_all_sources_are_counted() -> None:
    write("a.jsonl", [*numbered(2), {"prompt": ""}])
    write("b.jsonl", [{"prompt": ""}, {"text": "x"}, *numbered(2, "q")])
    splits = load_rows(config("a.jsonl", "b.jsonl", validation_fraction=0, on_bad_row="skip"), "prompts")
    assert splits.skipped == {"no_prompt": 2, "missing_column": 1}
    assert splits.examples["no_prompt"].startswith("a.jsonl, line 3, column prompt")


@pytest.mark.parametrize(
    ("rows", "keys", "message"),
    [
        (
            numbered(1),
            {"validation_fraction": 0.1},
            r"^rows\.jsonl: none of the 1 rows falls into the validation split \(validation_fraction 0\.1\)\. "
            r"Give more rows, raise validation_fraction, or set it to 0\.",
        ),
        (
            numbered(40),
            {"validation_fraction": 0, "test_fraction": 0.5, "max_rows": 1},
            r"rows.* \(.*test_fraction 0\.5, max_rows 1\)",
        ),
        (
            numbered(1),
            {"validation_fraction": 0, "test_fraction": 0.999},
            r"^rows\.jsonl: none of its 1 rows is left for training \(validation_fraction 0\.0, test_fraction 0\.999\)"
            r"\. Give more rows or lower the fractions\.",
        ),
    ],
)
def test_an_empty_split_is_an_error_that_says_why(
    rows: list[dict[str, Any]], keys: dict[str, Any], message: str
) -> None:
    write("rows.jsonl", rows)
    with pytest.raises(DataError, match=message):
        load_rows(config("rows.jsonl", **keys), "prompts")


def test_an_empty_half_is_an_error_that_says_why() -> None:
    write("rows.jsonl", numbered(1))
    raised = []
    for subset in ("first_half", "second_half"):
        try:
            load_rows(config("rows.jsonl", subset=subset, validation_fraction=0), "prompts")
        except DataError as error:
            raised.append(str(error))
    assert len(raised) == 1
    assert raised[0].startswith("rows.jsonl: none of its 1 rows falls into subset ")


def letters(prompt: Any, response: str | None) -> Tokens:
    """A tokenizer of letters, with 0 as EOS."""
    return Tokens([ord(letter) for letter in prompt], [] if response is None else [*map(ord, response), 0])


def test_rows_keep_the_tokens_by_which_they_were_measured() -> None:
    write("rows.jsonl", [{"prompt": "ab", "chosen": "c", "rejected": "de"}])
    one = {"validation_fraction": 0}
    [pair] = load_rows(config("rows.jsonl", **one), "preferences", encode=letters, max_tokens=5).train
    assert pair.tokens == (Tokens([97, 98], [99, 0]), Tokens([97, 98], [100, 101, 0]))
    with pytest.raises(DataError, match="column rejected: 5 tokens with its prompt, 4 are allowed"):
        load_rows(config("rows.jsonl", **one), "preferences", encode=letters, max_tokens=4)
    [prompt] = load_rows(config("rows.jsonl", **one), "prompts", encode=letters, max_tokens=2).train
    assert prompt.tokens == (Tokens([97, 98]),)


def test_each_row_is_tokenised_once_and_keeps_its_own_tokens_through_splitting_and_mixing() -> None:
    write("a.jsonl", [{"prompt": f"a{n}", "completion": f"x{n}"} for n in range(40)])
    write("b.jsonl", [{"prompt": f"b{n}", "completion": f"y{n}", "topic": n} for n in range(7)])
    asked: list[tuple[Any, str | None]] = []

    def encode(prompt: Any, response: str | None) -> Tokens:
        asked.append((prompt, response))
        return letters(prompt, response)

    splits = load_rows(config("a.jsonl", "b.jsonl"), "demonstrations", encode=encode, max_tokens=99)
    assert len(asked) == len(set(asked)) == 47
    assert len(splits.train) > 47  # rows of the small source are repeated
    for row in splits.train + splits.validation:
        assert row.tokens == (letters(row.prompt, row.response),)


def test_tokens_change_neither_order_nor_splits() -> None:
    write("rows.jsonl", [{"prompt": f"p{n % 9}", "completion": f"x{n}"} for n in range(60)])
    plain = load_rows(config("rows.jsonl"), "demonstrations")
    assert plain.train[0].tokens == ()
    assert load_rows(config("rows.jsonl"), "demonstrations", encode=letters, max_tokens=99) == plain


def test_content_hash_follows_content_not_names() -> None:
    write("a.jsonl", numbered(3))
    write("copy.jsonl", numbered(3))
    write("b.jsonl", numbered(4))
    assert content_hash(config("a.jsonl")) == content_hash(config("copy.jsonl", max_rows=1))
    assert content_hash(config("a.jsonl")) != content_hash(config("b.jsonl"))
    assert content_hash(config("a.jsonl", "b.jsonl")) != content_hash(config("b.jsonl", "a.jsonl"))


def test_content_hash_of_a_function_follows_its_file_and_args() -> None:
    def hashed(**args: Any) -> str:
        return content_hash(DataConfig(sources=[{"path": "rows.py:load", "args": args}]))

    Path("rows.py").write_text("def load(n=1):\n    return [{'prompt': 'x'}] * n\n")
    first, other_args = hashed(), hashed(n=2)
    Path("rows.py").write_text("def load(n=1):\n    return [{'prompt': 'y'}] * n\n")
    assert len({first, other_args, hashed()}) == 3


def test_content_hash_of_a_hub_data_set_follows_its_commit_and_reads_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the rows must not be read")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    commits = {("owner/name", None): "a" * 40, ("owner/name", "v2"): "b" * 40}
    monkeypatch.setattr(rlhf.data.load, "dataset_commit", lambda name, revision: commits[name, revision])

    def hashed(**source: Any) -> str:
        return content_hash(DataConfig(sources=[{"path": "owner/name", **source}]))

    first = hashed()
    assert hashed() == first
    assert len({first, hashed(args={"revision": "v2"}), hashed(split="test"), hashed(args={"name": "x"})}) == 4
    commits["owner/name", None] = "c" * 40
    assert hashed() != first


def test_a_hub_data_set_of_an_unknown_commit_is_warned_of(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr(rlhf.data.load, "dataset_commit", lambda name, revision: None)
    assert content_hash(config("owner/name")) == content_hash(config("owner/name"))
    assert "owner/name: the Hub does not say which commit" in caplog.text


def test_content_hash_of_a_misspelt_function_is_an_error() -> None:
    Path("rows.py").write_text("def load():\n    return []\n")
    with pytest.raises(DataError, match=r"rows\.py has no function 'laod'; did you mean load\?"):
        content_hash(config("rows.py:laod"))


def test_content_hash_of_a_missing_file_is_an_error() -> None:
    with pytest.raises(DataError, match=r"^a\.jsonl: no such file"):
        content_hash(config("a.jsonl"))
