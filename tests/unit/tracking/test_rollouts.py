"""Rollouts as Parquet: the schema is always the same, and a wrong row is named."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest

from rlhf.tracking import rollouts

ROW = {
    "index": 7,
    "prompt": "Where is my parcel?",
    "response": "On its way.",
    "score": 0.5,
    "kl": 1.25,
    "length": 4,
    "stop_reason": "eos",
    "component/length": 1,
}


def save(run_dir, rows, iteration):
    return rollouts.write(run_dir, rollouts.typed_rows(rows, iteration), iteration)


def test_a_row_comes_back_as_it_was(tmp_path):
    path = save(tmp_path, [ROW], 12)
    assert path == tmp_path / "rollouts" / "iteration_000012.parquet"
    assert rollouts.read(path) == [{**ROW, "iteration": 12, "sample_index": None, "component/length": 1.0}]
    assert list(path.parent.iterdir()) == [path]  # nothing unfinished is left


def test_the_schema_does_not_depend_on_the_values(tmp_path):
    empty = save(tmp_path, [{"index": 1}], 0)
    whole = save(tmp_path, [{**ROW, "score": 1}], 1)
    schema = {field.name: str(field.type) for field in pq.read_schema(whole)}
    assert schema.pop("component/length") == "double"
    assert schema == {field.name: str(field.type) for field in pq.read_schema(empty)}
    assert schema["score"] == "double"
    assert schema["prompt"] == "string"
    assert schema["length"] == "int64"


def test_a_component_that_only_some_rows_have_is_null_elsewhere_and_nan_stays_nan(tmp_path):
    rows = [{"component/a": 0.5}, {"component/b": math.nan}]
    first, second = rollouts.read(save(tmp_path, rows, 0))
    assert (first["component/a"], first["component/b"]) == (0.5, None)
    assert second["component/a"] is None
    assert math.isnan(second["component/b"])


def test_token_columns_are_json_lists_from_lists_arrays_and_json(tmp_path):
    row = {"tokens": [1, 2], "values": np.array([0.5, math.nan]), "rewards": "[0.0, 1.0]"}
    (read,) = rollouts.read(save(tmp_path, [row], 0))
    assert json.loads(read["tokens"]) == [1, 2]
    assert json.loads(read["values"]) == [0.5, None]
    assert json.loads(read["rewards"]) == [0.0, 1.0]
    assert "advantages" not in read


def test_messages_become_json_text(tmp_path):
    messages = [{"role": "user", "content": "Grüße"}]
    (read,) = rollouts.read(save(tmp_path, [{"prompt": messages}], 0))
    assert json.loads(read["prompt"]) == messages
    assert "Grüße" in read["prompt"]


def test_an_unknown_column_is_named_with_those_that_are_known():
    with pytest.raises(
        ValueError, match=r"rollout column 'scores' is not known; allowed: iteration, index.*component/NAME"
    ):
        rollouts.typed_rows([{"scores": 1.0}], 0)


def test_a_value_of_the_wrong_type_is_named_with_its_row_and_column():
    with pytest.raises(ValueError, match="rollout row 1, column 'score': 'high' is not of type double"):
        rollouts.typed_rows([ROW, {**ROW, "score": "high"}], 0)


def test_discarding_keeps_earlier_iterations(tmp_path):
    for iteration in (0, 1, 2, 10):
        save(tmp_path, [ROW], iteration)
    rollouts.discard_from(tmp_path, 2)
    assert list(rollouts.list_files(tmp_path)) == [0, 1]


def test_an_iteration_without_episodes_is_an_empty_file(tmp_path):
    assert rollouts.read(save(tmp_path, [], 3)) == []
