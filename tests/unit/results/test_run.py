"""A run folder read back: the right rows, in the right order, and words where something is not there."""

import math
import subprocess
import sys

import pyarrow as pa
import pytest

import rlhf
from rlhf.errors import StageError
from rlhf.tracking import rollouts
from rlhf.tracking.jsonl import JsonlSink


def log(run_dir, stage, points):
    sink = JsonlSink(run_dir, stage)
    for step, metrics in points:
        sink.log({f"{stage}/{name}": value for name, value in metrics.items()}, step)
    sink.close()


def tokens(*rewards):
    return [{"id": n, "text": f"t{n}", "turn": 1, "reward": reward} for n, reward in enumerate(rewards)]


@pytest.fixture
def run(tmp_path):
    """Two prompts, three iterations; prompt 1 gets better, one episode has no score, a component comes late."""
    log(tmp_path, "ppo", [(1, {"score": 0.5, "kl": 0.0}), (2, {"score": 1.5})])
    log(tmp_path, "sft", [(10, {"loss": 2.0})])
    for iteration in (1, 2, 3):
        rows = [
            {"index": 0, "prompt": "Hi", "score": 0.5, "length": 2, "tokens": tokens(0.25, -2.0)},
            {"index": 1, "prompt": "Bye", "score": float(iteration), "length": 9 - iteration},
            {"index": 1, "prompt": "Bye", "score": math.nan, "length": 1},
        ]
        if iteration == 3:
            rows[1]["component/late"] = 4.0
        rollouts.write(tmp_path, rollouts.typed_rows(rows, iteration), iteration)
    return rlhf.load_run(tmp_path)


def test_metrics_are_a_column_each_by_step(run):
    ppo = run.metrics("ppo")
    assert list(ppo.columns) == ["score", "kl"]
    assert ppo["score"].to_dict() == {1: 0.5, 2: 1.5}
    assert math.isnan(ppo.loc[2, "kl"])
    assert run.metrics("sft")["loss"].to_dict() == {10: 2.0}
    assert run.metrics("evaluate").empty


def test_rollouts_of_all_iterations_are_one_table(run):
    assert run.iterations == [1, 2, 3]
    table = run.rollout_table()
    assert table["iteration"].to_pylist() == [1] * 3 + [2] * 3 + [3] * 3
    assert table["component/late"].to_pylist() == [None] * 7 + [4.0, None]
    assert pa.types.is_struct(table.schema.field("tokens").type.value_type)
    assert list(run.rollouts(2)["score"])[:2] == [0.5, 2.0]
    assert run.rollout_table(3, ["score"]).column_names == ["score"]


def test_worst_and_best_are_sorted_and_leave_out_what_has_no_score(run):
    assert list(run.worst(4)["score"]) == [0.5, 0.5, 0.5, 1.0]
    assert list(run.worst(4)["iteration"]) == [1, 2, 3, 1]  # equals in the order in which they were played
    assert list(run.best(2)["score"]) == [3.0, 2.0]
    assert list(run.best(iteration=2)["score"]) == [2.0, 0.5]
    assert list(run.best(1, by="length", iteration=1)["length"]) == [8]
    assert list(run.best(by="component/late")["iteration"]) == [3]


def test_the_punished_token_of_the_worst_response(run):
    worst = run.worst(1, iteration=3).iloc[0]
    found = run.tokens(worst).nsmallest(1, "reward").iloc[0]
    assert (found["text"], found["reward"]) == ("t1", -2.0)
    assert run.tokens(run.best(1).iloc[0]).empty  # of that episode no tokens were kept


def test_prompts_with_their_first_and_last_iteration(run):
    table = run.by_prompt()
    assert list(table.index) == [0, 1]
    assert table.loc[1].to_dict() == {
        "prompt": "Bye", "episodes": 6, "mean": 2.0, "min": 1.0, "max": 3.0, "first": 1.0, "last": 3.0,
    }  # fmt: skip


def test_what_is_not_there_is_said_in_words(run):
    with pytest.raises(StageError, match=r"no rollouts of iteration 7: it has iterations 1 to 3"):
        run.rollouts(7)
    with pytest.raises(StageError, match=r"no column of numbers 'scores'; did you mean score\?"):
        run.worst(by="scores")
    with pytest.raises(StageError, match="stage 'pop' does not exist; allowed: sft, reward, ppo, evaluate"):
        run.metrics("pop")


def test_a_run_without_rollouts_has_empty_tables(tmp_path):
    log(tmp_path, "sft", [(1, {"loss": 2.0})])
    run = rlhf.load_run(tmp_path)
    assert run.iterations == []
    assert run.rollouts().empty
    assert run.worst().empty
    assert run.by_prompt().empty
    with pytest.raises(StageError, match="no rollouts of iteration 1: it has no rollouts"):
        run.rollouts(1)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(StageError, match=r"is not a run folder.*runs/NAME"):
        rlhf.load_run(tmp_path / "nothing")


def test_importing_the_package_is_cheap_and_its_names_are_few():
    program = "import sys, rlhf; print(*sorted({'pandas', 'torch', 'pyarrow'} & set(sys.modules)), rlhf.__all__)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['Run', 'load_run']"
    with pytest.raises(AttributeError, match="no attribute 'load_runs'"):
        _ = rlhf.load_runs
