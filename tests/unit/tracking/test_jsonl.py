"""metrics.jsonl: what is written, what survives a kill, and which records stand after a stage is repeated."""

import json
import logging
import math

from rlhf.tracking.jsonl import JsonlSink, read_records, read_series


def write(run_dir, stage, points):
    sink = JsonlSink(run_dir, stage)
    for step, metrics in points:
        sink.log(metrics, step)
    sink.close()


def test_a_line_holds_stage_step_time_and_metrics(tmp_path):
    write(tmp_path, "ppo", [(3, {"ppo/kl": 0.25, "ppo/score": -1.5})])
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert {key: record[key] for key in ("stage", "step", "ppo/kl", "ppo/score")} == {
        "stage": "ppo",
        "step": 3,
        "ppo/kl": 0.25,
        "ppo/score": -1.5,
    }
    assert record["time"] > 1.6e9
    assert record["session"] == 0


def test_what_is_not_finite_becomes_null_and_no_point_of_the_curve(tmp_path):
    write(tmp_path, "ppo", [(0, {"ppo/kl": math.nan}), (1, {"ppo/kl": math.inf}), (2, {"ppo/kl": 0.5})])
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert ['"ppo/kl": null' in line for line in lines] == [True, True, False]
    assert read_series(tmp_path) == {"ppo/kl": [(2, 0.5)]}


def test_a_line_is_on_disk_as_soon_as_it_is_logged(tmp_path):
    sink = JsonlSink(tmp_path, "sft")
    sink.log({"sft/loss": 1.0}, 1)
    assert read_series(tmp_path) == {"sft/loss": [(1, 1.0)]}
    sink.close()


def test_records_of_one_step_are_merged_and_the_later_value_stands(tmp_path):
    write(tmp_path, "sft", [(1, {"sft/loss": 1.0}), (1, {"sft/validation_loss": 2.0}), (1, {"sft/loss": 3.0})])
    assert read_series(tmp_path) == {"sft/loss": [(1, 3.0)], "sft/validation_loss": [(1, 2.0)]}


def test_a_summary_at_an_early_step_of_the_same_session_removes_nothing(tmp_path):
    write(tmp_path, "reward", [(1, {"reward/loss": 1.0}), (2, {"reward/loss": 0.5}), (0, {"reward/margin": 0.9})])
    assert read_series(tmp_path)["reward/loss"] == [(1, 1.0), (2, 0.5)]


def test_a_resumed_stage_replaces_what_it_repeats(tmp_path):
    write(tmp_path, "ppo", [(step, {"ppo/kl": float(step)}) for step in range(5)])
    write(tmp_path, "ppo", [(3, {"ppo/kl": 30.0})])
    assert read_series(tmp_path) == {"ppo/kl": [(0, 0.0), (1, 1.0), (2, 2.0), (3, 30.0)]}


def test_a_stage_run_again_forgets_its_past_but_not_other_stages(tmp_path):
    write(tmp_path, "sft", [(1, {"sft/loss": 1.0}), (2, {"sft/loss": 0.9})])
    write(tmp_path, "ppo", [(1, {"ppo/kl": 0.1})])
    write(tmp_path, "sft", [(1, {"sft/loss": 5.0})])
    assert read_series(tmp_path) == {"ppo/kl": [(1, 0.1)], "sft/loss": [(1, 5.0)]}
    assert [record["stage"] for record in read_records(tmp_path)] == ["ppo", "sft"]


def test_half_a_line_of_a_killed_process_costs_only_itself(tmp_path, caplog):
    write(tmp_path, "ppo", [(0, {"ppo/kl": 0.0})])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "ppo", "step": 1, "ppo/k')
    write(tmp_path, "ppo", [(2, {"ppo/kl": 2.0})])
    with caplog.at_level(logging.WARNING):
        assert read_series(tmp_path) == {"ppo/kl": [(0, 0.0), (2, 2.0)]}
    assert "line 2 is not a whole record" in caplog.text


def test_lines_count_goes_on_across_sessions(tmp_path):
    write(tmp_path, "sft", [(1, {}), (2, {})])
    sink = JsonlSink(tmp_path, "ppo")
    assert sink.lines == 2
    sink.log({}, 0)
    sink.close()
    assert sink.lines == 3


def test_a_folder_without_the_file_has_no_curves(tmp_path):
    assert read_series(tmp_path) == {}
