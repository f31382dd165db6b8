"""What a path may mean besides one plain file: packed files, arrays, globs, folders and what save_to_disk writes."""

import bz2
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from rlhf.config.data import DataConfig, SourceConfig
from rlhf.config.paths import resolve_paths
from rlhf.data import content_hash, load_rows
from rlhf.data.load import read_source
from rlhf.errors import DataError

ROWS = [{"prompt": "One?", "n": 1}, {"prompt": "Two äöü?", "n": 2}]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def places(path: str, **keys: Any) -> list[str]:
    return [row.place for row in read_source(SourceConfig(path=path, **keys), "prompts")]


def prompts(path: str, **keys: Any) -> list[Any]:
    return [row.values["prompt"] for row in read_source(SourceConfig(path=path, **keys), "prompts")]


def write(name: str, *texts: str) -> None:
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_bytes(lines([{"prompt": text} for text in texts]))


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content", "unit"),
    [
        ("rows.JSONL", lines(ROWS), "line"),
        ("rows.jsonl.gz", gzip.compress(lines(ROWS), mtime=0), "line"),
        ("rows.jsonl.bz2", bz2.compress(lines(ROWS)), "line"),
        ("Rows.Jsonl.ZST", zstd(lines(ROWS)), "line"),
        ("rows.json", lines(ROWS), "line"),  # many tools call lines of JSON so
        ("rows.json", json.dumps(ROWS, indent=1).encode("utf-8-sig"), "row"),
        ("rows.jsonl", b"\n" + json.dumps(ROWS).encode(), "row"),
        ("rows.json.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0), "row"),
    ],
)
def test_a_file_is_read_by_its_suffix_packed_or_not(name: str, content: bytes, unit: str) -> None:
    Path(name).write_bytes(content)
    rows = read_source(SourceConfig(path=name), "prompts")
    assert [row.values for row in rows] == ROWS
    assert [row.place for row in rows] == [f"{name}, {unit} {n}" for n in (1, 2)]


def test_tables_are_read_packed_and_parted_by_tabs_or_semicolons() -> None:
    Path("rows.csv.gz").write_bytes(gzip.compress('prompt,n\nOne?,1\n"Two\näöü?",2\n'.encode("utf-8-sig")))
    Path("half.csv").write_bytes(b'prompt;n\n"One; two?";1,5\n')
    assert read_source(SourceConfig(path="half.csv"), "prompts")[0].values == {"prompt": "One; two?", "n": "1,5"}
    Path("rows.TSV").write_bytes(b"prompt\tn\nOne, two?\t1\n")
    assert places("rows.csv.gz") == ["rows.csv.gz, line 2", "rows.csv.gz, line 3"]
    assert prompts("rows.csv.gz") == ["One?", "Two\näöü?"]
    assert prompts("rows.TSV") == ["One, two?"]


def test_a_glob_is_all_files_that_match_in_the_order_of_their_names() -> None:
    write("data/b.jsonl", "third")
    write("data/a.jsonl", "first", "second")
    write("data/deep/c.jsonl", "fourth")
    Path("data/a.txt").write_text("x")
    assert places("data/*.jsonl") == ["data/a.jsonl, line 1", "data/a.jsonl, line 2", "data/b.jsonl, line 1"]
    assert prompts("data/**/*") == ["first", "second", "third", "fourth"]
    with pytest.raises(DataError, match=r"^data/\*\.csv: no file matches it\. Relative paths start at /"):
        prompts("data/*.csv")
    with pytest.raises(DataError, match=r"^data/\*\.txt: the files that match it are none of \.jsonl, "):
        prompts("data/*.txt")


def test_the_name_of_a_file_may_look_like_a_glob() -> None:
    write("rows[1].jsonl", "x")
    assert prompts("rows[1].jsonl") == ["x"]


def test_a_folder_without_splits_is_all_its_files() -> None:
    write("data/a.jsonl", "first")
    write("data/sub/b.jsonl", "second")
    Path("data/README.md").write_text("about")
    assert prompts("data") == ["first", "second"]
    assert places("data") == ["data/a.jsonl, line 1", "data/sub/b.jsonl, line 1"]


def test_a_folder_whose_file_names_say_a_split_gives_that_split_alone() -> None:
    table = pyarrow.Table.from_pylist(ROWS)
    Path("hub/data").mkdir(parents=True)
    for name in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        pyarrow.parquet.write_table(table, f"hub/data/{name}.parquet")
    assert len(places("hub")) == 4
    assert places("hub", split="test") == [f"hub/data/test-00000-of-00001.parquet, row {n}" for n in (1, 2)]
    with pytest.raises(
        DataError, match=r"^hub: split 'tset' is none of its splits \(did you mean test\?\); set `split`"
    ):
        places("hub", split="tset")


def test_a_folder_without_data_says_so() -> None:
    Path("empty").mkdir()
    with pytest.raises(DataError, match=r"^empty: a folder without data\. It may hold \.jsonl, "):
        places("empty")
    Path("empty/notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"^empty: a folder without data"):
        places("empty")


def test_a_split_has_no_meaning_for_a_file() -> None:
    write("a.jsonl", "x")
    with pytest.raises(DataError, match=r"^a\.jsonl: split 'test' has an effect on folders and Hub ids alone: remove"):
        places("a.jsonl", split="test")


def test_what_save_to_disk_wrote() -> None:
    rows = datasets.Dataset.from_list(ROWS)
    rows.save_to_disk("one")
    datasets.DatasetDict(train=rows, test=rows.select([1])).save_to_disk("both")
    assert [row.values for row in read_source(SourceConfig(path="one"), "prompts")] == ROWS
    assert places("both") == ["both, row 1", "both, row 2"]
    assert prompts("both", split="test") == ["Two äöü?"]
    with pytest.raises(DataError, match=r"^both: split 'dev' is none of its splits; .* to one of: test, train\."):
        places("both", split="dev")


def test_messages_survive_save_to_disk() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    datasets.Dataset.from_list([{"messages": messages, "prompt": None}]).save_to_disk("one")
    [row] = load_rows(DataConfig(path="one", validation_fraction=0), "demonstrations").train
    assert (row.prompt, row.response) == ([{"role": "user", "content": "Hi"}], "Hello")


def test_the_content_hash_of_many_files_follows_each_of_them() -> None:
    write("data/a.jsonl", "x")
    hashes = [content_hash(DataConfig(path=path)) for path in ("data", "data/*.jsonl")]
    assert hashes[0] == hashes[1]
    write("data/b.jsonl", "y")
    assert content_hash(DataConfig(path="data")) == content_hash(DataConfig(path="data/*.jsonl")) != hashes[0]
    datasets.Dataset.from_list(ROWS).save_to_disk("saved")
    before = content_hash(DataConfig(path="saved"))
    datasets.Dataset.from_list(ROWS[:1]).save_to_disk("saved")
    assert content_hash(DataConfig(path="saved")) != before


def test_a_glob_may_begin_beside_the_config_file() -> None:
    write("study/data/a.jsonl", "x")
    here, beside = (
        resolve_paths(SourceConfig(path=path), Path("study")).path for path in ("study/*/*", "data/*.jsonl")
    )
    assert (here, beside) == ("study/*/*", "study/data/*.jsonl")
    assert prompts(beside) == ["x"]
