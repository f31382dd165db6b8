"""Rollouts as Parquet: the schema is always the same, a wrong row is named, and earlier files are still read."""

import json
import math
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf.errors import StageError
from rlhf.tracking import rollouts
from rlhf.tracking.rollout_schema import COLUMNS, TOKEN_FIELDS, VERSION

TOKEN = {name: None for name in TOKEN_FIELDS}
ROW = {
    "index": 7,
    "prompt": "Where is my parcel?",
    "response": "On its way.",
    "score": 0.5,
    "kl": 1.25,
    "length": 2,
    "stop_reason": "eos",
    "component/length": 1,
    "messages": [{"role": "user", "content": "Where is my parcel?", "turn": 0}],
    "tokens": [{**TOKEN, "id": 5, "text": "On", "turn": 1, "value": 0.5}, {**TOKEN, "id": 6, "text": " its way."}],
    "token_ids": [3, 5, 6],
    "response_mask": [False, True, True],
}


def save(run_dir, rows, iteration):
    return rollouts.write(run_dir, rollouts.typed_rows(rows, iteration), iteration)


def save_version_1(run_dir, number, rows):
    """A file as version 1 wrote it: iterations from 0, lists as JSON text, no version."""
    (run_dir / "rollouts").mkdir(exist_ok=True)
    path = run_dir / "rollouts" / f"iteration_{number:06d}.parquet"
    pq.write_table(pa.Table.from_pylist([{"iteration": number, **row} for row in rows]), path)
    return path


OLD = {
    "index": 7,
    "sample_index": 0,
    "prompt": "Hi",
    "response": "Yo",
    "score": 2.0,
    "kl": 0.5,
    "length": 2,
    "stop_reason": "eos",
    "component/a": 0.25,
    "tokens": "[4, 1]",
    "logprobs": "[-0.5, -0.25]",
    "ref_logprobs": "[-1.0, -0.25]",
    "values": "[0.1, 0.2]",
    "advantages": "[1.0, -1.0]",
    "rewards": "[-0.025, 2.0]",
}


def test_a_row_comes_back_as_it_was(tmp_path):
    path = save(tmp_path, [ROW], 12)
    assert path == tmp_path / "rollouts" / "iteration_000012.parquet"
    (read,) = rollouts.read(path)
    assert {name: read[name] for name in ROW} == ROW
    assert read["iteration"] == 12
    assert {read[name] for name in read if name not in ROW and name != "iteration"} == {None}
    assert list(path.parent.iterdir()) == [path]  # nothing unfinished is left


def test_the_schema_does_not_depend_on_the_values(tmp_path):
    empty = save(tmp_path, [{"index": 1}], 1)
    whole = save(tmp_path, [{**ROW, "score": 1}], 2)
    schema = {field.name: field.type for field in pq.read_schema(whole)}
    assert schema.pop("component/length") == pa.float64()
    assert schema == {field.name: field.type for field in pq.read_schema(empty)} == COLUMNS
    assert pq.read_schema(whole).metadata[b"rlhf.rollouts.version"] == str(VERSION).encode()
    assert pa.types.is_struct(schema["tokens"].value_type)  # not JSON in text


def test_a_component_that_only_some_rows_have_is_null_elsewhere_and_nan_stays_nan(tmp_path):
    rows = [{"component/a": 0.5}, {"component/b": math.nan}]
    first, second = rollouts.read(save(tmp_path, rows, 1))
    assert (first["component/a"], first["component/b"]) == (0.5, None)
    assert second["component/a"] is None
    assert math.isnan(second["component/b"])


def test_a_prompt_of_messages_is_text_with_its_roles(tmp_path):
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Grüße"}]
    (read,) = rollouts.read(save(tmp_path, [{"prompt": messages}], 1))
    assert read["prompt"] == "system: Be kind.\nuser: Grüße"


def test_some_columns_alone_can_be_read(tmp_path):
    table = rollouts.read_table(save(tmp_path, [ROW], 1), columns=["score", "component/unknown", "index"])
    assert table.to_pylist() == [{"score": 0.5, "index": 7}]


def test_an_unknown_column_is_named_with_those_that_are_known():
    with pytest.raises(
        ValueError, match=r"rollout column 'scores' is not known; allowed: iteration, index.*component/NAME"
    ):
        rollouts.typed_rows([{"scores": 1.0}], 1)


@pytest.mark.parametrize(("column", "value"), [("score", "high"), ("length", "two"), ("tokens", [1]), ("response", 3)])
def test_a_value_of_the_wrong_type_is_named_with_its_row_and_column(column, value):
    with pytest.raises(ValueError, match=rf"rollout row 1, column '{column}': {re.escape(repr(value))} is not of type"):
        rollouts.typed_rows([ROW, {**ROW, column: value}], 1)


def test_discarding_keeps_earlier_iterations(tmp_path):
    for iteration in (1, 2, 3, 10):
        save(tmp_path, [ROW], iteration)
    rollouts.discard_from(tmp_path, 3)
    assert list(rollouts.list_files(tmp_path)) == [1, 2]


def test_an_iteration_without_episodes_is_an_empty_file(tmp_path):
    assert rollouts.read(save(tmp_path, [], 3)) == []


def test_a_file_of_version_1_is_read_in_the_columns_of_now(tmp_path):
    path = save_version_1(tmp_path, 0, [OLD])
    (row,) = rollouts.read(path)
    assert row["iteration"] == 1
    assert (row["score"], row["component/a"], row["stop_reason"]) == (2.0, 0.25, "eos")
    assert row["reward"] == pytest.approx(1.975)
    assert row["reward_kl"] is None  # version 1 did not keep the parts of a reward
    first, last = row["tokens"]
    assert (first["id"], first["text"], first["kl"], first["advantage"]) == (4, None, 0.5, 1.0)
    assert (last["kl"], last["reward"]) == (0.0, 2.0)
    assert [(m["role"], m["content"], m["turn"]) for m in row["messages"]] == [
        ("user", "Hi", 0),
        ("assistant", "Yo", 1),
    ]


def test_version_1_kept_messages_as_json_and_unscored_episodes_without_tokens(tmp_path):
    prompt = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    row = {**OLD, "prompt": json.dumps(prompt), **{name: None for name in OLD if name.endswith("s")}, "score": math.nan}
    row["stop_reason"] = "length"
    (read,) = rollouts.read(save_version_1(tmp_path, 0, [row]))
    assert read["prompt"] == "system: S\nuser: U"
    assert [(m["role"], m["turn"]) for m in read["messages"]] == [("system", 0), ("user", 0), ("assistant", 1)]
    assert read["tokens"] is None
    assert read["reward"] is None


def test_files_of_both_versions_in_one_run_are_counted_from_1(tmp_path):
    old = [save_version_1(tmp_path, number, [OLD]) for number in (0, 1, 2)]
    rollouts.discard_from(tmp_path, 3)  # a run that goes on with iteration 3
    assert not old[2].exists()
    new = save(tmp_path, [ROW], 3)
    assert rollouts.list_files(tmp_path) == {1: old[0], 2: old[1], 3: new}
    assert [rollouts.read(path)[0]["iteration"] for path in (*old[:2], new)] == [1, 2, 3]


def test_a_file_of_a_later_version_is_refused_in_words(tmp_path):
    path = save(tmp_path, [ROW], 1)
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({"rlhf.rollouts.version": "9"}), path)
    with pytest.raises(StageError, match=r"iteration_000001\.parquet is a rollout file of version 9; this rlhf reads"):
        rollouts.read(path)


def test_a_broken_file_is_named(tmp_path):
    path = save(tmp_path, [ROW], 1)
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(StageError, match=r"iteration_000001\.parquet is not a Parquet file"):
        rollouts.read(path)


def test_the_documentation_explains_every_column_and_every_field_of_a_token():
    page = (Path(__file__).parents[3] / "docs" / "rollouts.md").read_text("utf-8")
    explained = set(re.findall(r"^\| `([\w/]+)` \|", page, re.MULTILINE))
    assert explained >= {*COLUMNS, *TOKEN_FIELDS, "component/NAME"}
    assert f"version {VERSION}" in page
