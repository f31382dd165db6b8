"""Cells of CSV files: which columns become numbers, true or false, or JSON, and which stay text."""

from pathlib import Path
from typing import Any

import pytest

from rlhf.config.data import DataConfig, SourceConfig
from rlhf.data import load_rows
from rlhf.data.load import read_source
from rlhf.errors import DataError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def column(*cells: str, name: str = "x", **keys: Any) -> list[Any]:
    quoted = ['"' + cell.replace('"', '""') + '"' for cell in cells]
    Path("rows.csv").write_text(f"prompt,{name}\n" + "".join(f"p,{cell}\n" for cell in quoted))
    return [row.values[name] for row in read_source(SourceConfig(path="rows.csv", **keys), "prompts")]


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["1", "-20", " 3 "], [1, -20, 3]),
        (["1", "2.5", "1e3"], [1, 2.5, 1000.0]),
        (["72", "", "18"], [72, None, 18]),
        (["true", "False", "TRUE"], [True, False, True]),
        (['["a", "b"]', "[]"], [["a", "b"], []]),
        (['{"a": 1}', ""], [{"a": 1}, None]),
        # text: one cell that is none of these is enough
        (["007", "042"], ["007", "042"]),
        (["1", "2", "n/a"], ["1", "2", "n/a"]),
        (["1,5", "+3"], ["1,5", "+3"]),
        (["1", "true"], ["1", "true"]),
        (["1", "[1]"], ["1", "[1]"]),
        (["NaN", "1"], ["NaN", "1"]),
        (["null", "null"], ["null", "null"]),
        (["", ""], ["", ""]),
    ],
)
def test_a_column_is_typed_if_all_its_cells_are(cells: list[str], values: list[Any]) -> None:
    found = column(*cells)
    assert found == values
    assert [type(value) for value in found] == [type(value) for value in values]


def test_text_columns_stay_text() -> None:
    assert column("1", "2", text_columns=["x"]) == ["1", "2"]
    Path("rows.jsonl").write_text('{"prompt": "p", "x": 1}\n')
    with pytest.raises(DataError, match=r"^rows\.jsonl: text_columns has an effect on CSV and TSV alone: remove it"):
        read_source(SourceConfig(path="rows.jsonl", text_columns=["x"]), "prompts")
    with pytest.raises(DataError, match=r"^rows\.csv: text_columns names y, which the data does not have; it has pro"):
        column("1", text_columns=["y"])


def test_prompts_and_responses_stay_text_unless_they_are_messages() -> None:
    assert column("12", "7", name="completion") == ["12", "7"]
    assert column("[1, 2]", "[3]", name="completion") == ["[1, 2]", "[3]"]
    assert column('[{"role": "user", "content": "Hi"}]', name="messages") == [[{"role": "user", "content": "Hi"}]]


def test_names_are_those_after_renaming() -> None:
    Path("rows.csv").write_text("question,answer\n12,7\n")
    source = SourceConfig(path="rows.csv", columns={"prompt": "question"})
    [row] = read_source(source, "prompts")
    assert row.values == {"prompt": "12", "answer": 7}


def test_a_conversation_in_a_csv_file() -> None:
    Path("rows.csv").write_text(
        'messages,score\n"[{""role"": ""user"", ""content"": ""Hi""}, '
        '{""role"": ""assistant"", ""content"": ""Yes""}]",3\n'
    )
    [row] = load_rows(DataConfig(path="rows.csv", validation_fraction=0), "demonstrations").train
    assert (row.prompt, row.response, row.columns) == ([{"role": "user", "content": "Hi"}], "Yes", {"score": 3})
