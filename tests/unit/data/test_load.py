"""Sources: files, packaged data, functions and Hub data sets, columns renamed, and errors for what is not there."""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

import rlhf.data.origin
from rlhf.config.data import DataConfig, SourceConfig
from rlhf.data import Demonstration, Preference, Prompt, load_rows
from rlhf.data.load import read_source as read_rows
from rlhf.data.raw import RawRow
from rlhf.errors import DataError

ROWS = [
    {"prompt": "One?", "completion": "Yes.", "topic": "a"},
    {"prompt": "Two,\nor more?", "completion": 'He said "no".', "topic": "b"},
    {"prompt": "Drei äöü 😀?", "completion": " Ja", "topic": ""},
]
MODULE = """
def rows(count=1, prompt="x"):
    for number in range(count):
        yield {"prompt": f"{prompt} {number}"}

def numbers():
    return [1, 2]

def a_dict():
    return {"prompt": ["x"]}

def fails():
    yield {"prompt": "x"}
    raise KeyError("column")

value = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path, str(tmp_path)])
    (tmp_path / "my_rows.py").write_text(MODULE)
    yield tmp_path
    sys.modules.pop("my_rows", None)


def source(path: str, **keys: Any) -> SourceConfig:
    return SourceConfig(path=path, **keys)


def read_source(source: SourceConfig) -> list[RawRow]:
    return read_rows(source, "prompts")


def write_jsonl(path: Path, rows: list[dict[str, Any]], encoding: str = "utf-8") -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding=encoding)


def write_csv(path: Path, rows: list[dict[str, Any]], encoding: str = "utf-8") -> None:
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_all_file_formats_give_the_same_rows(folder: Path, encoding: str) -> None:
    write_jsonl(folder / "rows.jsonl", ROWS, encoding)
    write_csv(folder / "rows.csv", ROWS, encoding)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), folder / "rows.parquet")
    read = {suffix: read_source(source(f"rows.{suffix}")) for suffix in ("jsonl", "csv", "parquet")}
    for rows in read.values():
        assert [row.values for row in rows] == ROWS
    assert [row.place for row in read["jsonl"]] == [f"rows.jsonl, line {n}" for n in (1, 2, 3)]
    assert [row.place for row in read["csv"]] == [f"rows.csv, line {n}" for n in (2, 3, 5)]  # the header is line 1
    assert [row.place for row in read["parquet"]] == [f"rows.parquet, row {n}" for n in (1, 2, 3)]


def test_parquet_keeps_messages(folder: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"messages": messages}]), folder / "rows.parquet")
    splits = load_rows(DataConfig(sources=[{"path": "rows.parquet"}], validation_fraction=0), "demonstrations")
    assert splits.train == [Demonstration(messages[:1], "Hello", {})]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.csv", b"prompt,topic\nx,y,z\n", "rows.csv, line 2: 3 fields instead of the header's 2: prompt, topic."),
        ("rows.csv", b"prompt\n\xe9\n", "rows.csv: byte 8 is not UTF-8. Save the file as UTF-8."),
        ("rows.csv", b'prompt\nx\n"open\n', "rows.csv, line 3: not CSV: unexpected end of data. Quote fields"),
        ("rows.parquet", b"prompt", "rows.parquet: not a readable Parquet file: "),
        ("rows.jsonl", b"", "rows.jsonl: it holds no rows. Give a source that has some."),
        ("rows.csv", b"prompt,topic\n", "rows.csv: it holds no rows."),
        ("rows.json", b"[]", "rows.json: it holds no rows."),
        (
            "rows.json",
            b'[{"prompt": "x"},\n {"prompt"}]',
            "rows.json, line 2: the file begins as one array, and that is",
        ),
        (
            "rows.xlsx",
            b"PK",
            "rows.xlsx: no file that can be read. Allowed are .jsonl, .json, .ndjson, .csv, .tsv, .par",
        ),
        ("rows.jsonl.gz", b"[]", "rows.jsonl.gz: cannot be read: "),
        ("rows.parquet.gz", b"", "rows.parquet.gz: no file that can be read."),
    ],
)
def test_a_file_that_cannot_be_read(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load_rows(DataConfig(sources=[{"path": name}]), "prompts")
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "data/trian.jsonl",
            r"^data/trian\.jsonl: no such file; folder .*data has no trian\.jsonl: did you mean train\.jsonl\?",
        ),
        ("dta/train.jsonl", r"^dta/train\.jsonl: no such file; folder .* has no dta: did you mean data\?"),
        ("data/zzz.csv", r"^data/zzz\.csv: no such file; folder .*data has no zzz\.csv: it holds train\.jsonl\?"),
        ("data/train", r"^data/train: no such file; .* did you mean train\.jsonl\?"),
        ("https://example.org/x.json", r"no file that can be read\. Allowed are"),
        (
            "packaged:support/demonstration",
            r"^packaged:support/demonstration: no such packaged data set; there are: support/d",
        ),
        ("packaged:../secret", r"^packaged:\.\./secret: no such packaged data set; there are: "),
        ("my_rows.py:row", r"^my_rows\.py:row: my_rows\.py has no function 'row'; did you mean rows\?$"),
        ("my_rows:value", r"^my_rows:value: value is 3, which cannot be called; name a function\."),
        (
            "my_row.py:rows",
            r"^my_row\.py:rows: there is no file my_row\.py \(did you mean my_rows\.py\?\)\. Relative paths start at",
        ),
        (
            "no_module:rows",
            r"^no_module:rows: importing no_module fails: ModuleNotFoundError: .*'path/to/file\.py:function'",
        ),
        ("my_rows:numbers", r"^my_rows:numbers, row 1: the function yielded int instead of a dict"),
        (
            "my_rows:a_dict",
            r"^my_rows:a_dict returned dict; it must return an iterable of dicts or a datasets\.Dataset",
        ),
        ("my_rows:fails", r"^my_rows:fails raised KeyError: 'column'\. Mend the function or its `args`\."),
        ("broken.py:rows", r"^broken\.py:rows: importing broken\.py fails: ZeroDivisionError: division by zero\."),
    ],
)
def test_a_source_that_is_not_there(folder: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str) -> None:
    (folder / "data").mkdir()
    write_jsonl(folder / "data" / "train.jsonl", ROWS)
    (folder / "envs" / "data" / "support").mkdir(parents=True)
    write_jsonl(folder / "envs" / "data" / "support" / "demonstrations.jsonl", ROWS)
    write_jsonl(folder / "envs" / "secret.jsonl", ROWS)
    monkeypatch.setattr(rlhf.data.origin.importlib.resources, "files", lambda package: folder / package)
    (folder / "broken.py").write_text("1 / 0")
    with pytest.raises(DataError, match=message):
        load_rows(DataConfig(sources=[{"path": path}]), "prompts")


def test_packaged_data_comes_with_the_installed_package() -> None:
    name = "packaged:customer_service/preferences"
    splits = load_rows(DataConfig(sources=[{"path": name}]), "preferences")
    assert len(splits.train) + len(splits.validation) >= 400
    assert isinstance(splits.train[0], Preference)
    assert set(splits.train[0].columns) == {"topic", "fault"}


@pytest.mark.parametrize("path", ["my_rows:rows", "my_rows.py:rows"])
def test_a_function_gives_rows_and_takes_args(path: str) -> None:
    rows = read_source(source(path, args={"count": 2, "prompt": "Why"}))
    assert [row.values for row in rows] == [{"prompt": "Why 0"}, {"prompt": "Why 1"}]
    assert rows[1].place == f"{path}, row 2"


def test_a_function_refuses_unknown_args() -> None:
    with pytest.raises(
        DataError, match=r"unexpected keyword argument 'cuont'; its signature is \(count=1, prompt='x'\)"
    ):
        read_source(source("my_rows:rows", args={"cuont": 2}))


def test_a_function_may_return_a_dataset(folder: Path) -> None:
    (folder / "hub.py").write_text(
        "import datasets\ndef load():\n    return datasets.Dataset.from_list([{'prompt': 'x', 'n': 1}])\n"
        "def both():\n    return datasets.DatasetDict(train=load())\n"
    )
    assert [row.values for row in read_source(source("hub.py:load"))] == [{"prompt": "x", "n": 1}]
    with pytest.raises(DataError, match=r"hub\.py:both returned DatasetDict; it must return"):
        read_source(source("hub.py:both"))


def test_a_file_beside_the_function_file_can_be_imported(folder: Path) -> None:
    (folder / "inner").mkdir()
    (folder / "inner" / "neighbour_of_rows.py").write_text("ROW = {'prompt': 'x'}\n")
    (folder / "inner" / "uses_neighbour.py").write_text(
        "from neighbour_of_rows import ROW\ndef load():\n    return [ROW]\n"
    )
    assert len(read_source(source("inner/uses_neighbour.py:load"))) == 1


def test_args_belong_to_functions(folder: Path) -> None:
    write_jsonl(folder / "rows.jsonl", ROWS)
    with pytest.raises(DataError, match=r"rows\.jsonl: args \{'count': 2\} have no effect on a file: remove them"):
        read_source(source("rows.jsonl", args={"count": 2}))


def test_a_hub_data_set_is_loaded_by_id_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def load_dataset(path: str, **keys: Any) -> datasets.Dataset:
        calls.append((path, keys))
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = read_source(source("owner/name", split="test", args={"name": "main"}))
    assert calls == [("owner/name", {"split": "test", "name": "main"})]
    assert [row.values for row in rows] == ROWS
    assert rows[2].place == "owner/name, row 3"


def test_a_hub_data_set_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(path: str, **keys: Any) -> datasets.Dataset:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        DataError,
        match=r"^owner/name: no such file here, and as a data set of the Hub \(split 'train'\) .*ConnectionError",
    ):
        read_source(source("owner/name"))


def test_columns_are_renamed_ours_to_theirs(folder: Path) -> None:
    write_jsonl(folder / "rows.jsonl", [{"question": "x", "answer": "y", "prompt": "system text", "topic": "t"}])
    columns = {"prompt": "question", "completion": "answer"}
    rows = read_source(source("rows.jsonl", columns=columns))
    assert rows[0].values == {"prompt": "x", "completion": "y", "topic": "t"}
    both = read_source(source("rows.jsonl", columns={"prompt": "question", "reference": "question"}))
    assert both[0].values == {"prompt": "x", "reference": "x", "answer": "y", "topic": "t"}


def test_columns_can_be_exchanged(folder: Path) -> None:
    write_jsonl(folder / "rows.jsonl", [{"prompt": "x", "chosen": "worse", "rejected": "better"}])
    rows = read_source(source("rows.jsonl", columns={"chosen": "rejected", "rejected": "chosen"}))
    assert rows[0].values == {"prompt": "x", "chosen": "better", "rejected": "worse"}


def test_renaming_a_column_that_no_row_has(folder: Path) -> None:
    write_jsonl(folder / "rows.jsonl", [{"question": "x"}, {"answer": "y"}])
    message = r"columns maps prompt to qestion, which .* \(did you mean question\?\); it has question, answer\."
    with pytest.raises(DataError, match=message):
        read_source(source("rows.jsonl", columns={"prompt": "qestion"}))


def test_renaming_a_column_that_some_rows_lack(folder: Path) -> None:
    write_jsonl(folder / "rows.jsonl", [{"question": "x"}, {"answer": "y"}])
    config = DataConfig(sources=[{"path": "rows.jsonl", "columns": {"prompt": "question"}}])
    with pytest.raises(
        DataError, match=r"^rows\.jsonl, line 2, column prompt: there is no such column; the row has answer"
    ):
        load_rows(config, "prompts")


def test_rows_of_every_trl_format(folder: Path) -> None:
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}
    good, poor = {"role": "assistant", "content": "Hello"}, {"role": "assistant", "content": "What"}
    cases: list[tuple[Any, dict[str, Any], Any]] = [
        ("demonstrations", {"prompt": "Hi", "completion": " Hello"}, Demonstration("Hi", " Hello")),
        ("demonstrations", {"prompt": [user], "completion": [good]}, Demonstration([user], "Hello")),
        ("demonstrations", {"prompt": "Hi", "completion": [user, good]}, Demonstration("Hi", "Hello")),
        ("demonstrations", {"messages": [system, user, good]}, Demonstration([system, user], "Hello")),
        (
            "demonstrations",
            {"prompt": "Hi", "messages": [user, poor, user, good]},
            Demonstration([user, poor, user], "Hello", {"prompt": "Hi"}),
        ),
        ("preferences", {"prompt": "Hi", "chosen": "Hello", "rejected": "What"}, Preference("Hi", "Hello", "What")),
        ("preferences", {"prompt": [user], "chosen": [good], "rejected": [poor]}, Preference([user], "Hello", "What")),
        (
            "preferences",
            {"prompt": "Hi", "chosen": [user, good], "rejected": [user, poor]},
            Preference("Hi", "Hello", "What"),
        ),
        (
            "preferences",
            {"chosen": [system, user, good], "rejected": [system, user, poor], "score": 0.5},
            Preference([system, user], "Hello", "What", {"score": 0.5}),
        ),
        ("prompts", {"prompt": "Hi", "completion": "Hello"}, Prompt("Hi", {"completion": "Hello"})),
        ("prompts", {"prompt": [system, user]}, Prompt([system, user])),
        ("prompts", {"messages": [user]}, Prompt([user])),
        ("prompts", {"messages": [user, good], "topic": "x"}, Prompt([user], {"completion": "Hello", "topic": "x"})),
        ("prompts", {"prompt": [{**user, "name": None}]}, Prompt([user])),
        # null and empty columns, as joined tables have them
        (
            "demonstrations",
            {"messages": [user, good], "prompt": None, "completion": None},
            Demonstration([user], "Hello", {"prompt": None, "completion": None}),
        ),
        (
            "demonstrations",
            {"prompt": "Hi", "completion": "Hello", "messages": []},
            Demonstration("Hi", "Hello", {"messages": []}),
        ),
        ("prompts", {"messages": [user], "prompt": None}, Prompt([user])),
        (
            "preferences",
            {"prompt": None, "chosen": [user, good], "rejected": [user, poor]},
            Preference([user], "Hello", "What"),
        ),
        ("prompts", {"prompt": [{**user, "tool_calls": [], "images": None}]}, Prompt([user])),
        # one text in parts, and messages as a dict of lists
        (
            "prompts",
            {"prompt": [{"role": "user", "content": [{"type": "text", "text": "Hi", "image": None}]}]},
            Prompt([user]),
        ),
        ("prompts", {"prompt": {"role": ["user"], "content": ["Hi"]}}, Prompt([user])),
        # pairs that part before their last turn
        (
            "preferences",
            {"chosen": [user, good, user, good], "rejected": [user, poor, system, poor]},
            Preference([user], "Hello", "What", chosen_turns=[good, user], rejected_turns=[poor, system]),
        ),
        (  # what they have in common ends where the assistant speaks next
            "preferences",
            {"chosen": [user, good, user, good], "rejected": [user, good, system, poor]},
            Preference([user], "Hello", "What", chosen_turns=[good, user], rejected_turns=[good, system]),
        ),
        (
            "preferences",
            {"chosen": [user, good], "rejected": [user, poor, user, good]},
            Preference([user], "Hello", "Hello", rejected_turns=[poor, user]),
        ),
        (
            "preferences",
            {"prompt": [user], "chosen": [user, good, user, good], "rejected": [poor, user, poor]},
            Preference([user], "Hello", "What", chosen_turns=[good, user], rejected_turns=[poor, user]),
        ),
        (
            "demonstrations",
            {"prompt": "Hi", "completion": [poor, user, good]},
            Demonstration([user, poor, user], "Hello"),
        ),
        # one message instead of a list
        ("preferences", {"prompt": "Hi", "chosen": good, "rejected": poor}, Preference("Hi", "Hello", "What")),
    ]
    for kind, row, expected in cases:
        write_jsonl(folder / "rows.jsonl", [row])
        splits = load_rows(DataConfig(sources=[{"path": "rows.jsonl"}], validation_fraction=0), kind)
        assert splits.train == [expected], row
