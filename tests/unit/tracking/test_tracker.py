"""The tracker: everything that is logged reaches every place, in the first process only."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rlhf.tracking.tracker as module
from rlhf.config.schema import TrackingConfig
from rlhf.launch.rank import is_main_process
from rlhf.tracking import rollouts
from rlhf.tracking.jsonl import read_series
from rlhf.tracking.sink import Artifact, Sink
from rlhf.tracking.tracker import NullTracker, Tracker


def config(tensorboard=False, rows=2, mode="disabled"):
    return TrackingConfig(tensorboard=tensorboard, rollout_rows_per_table=rows, wandb={"mode": mode})


class Recorder(Sink):
    """A sink that remembers, in the place of TensorBoard."""

    def __init__(self):
        self.calls = []

    def log(self, metrics, step):
        self.calls.append(("log", dict(metrics), step))

    def log_rollouts(self, rows, iteration):
        self.calls.append(("rollouts", rows, iteration))

    def log_table(self, name, rows):
        self.calls.append(("table", name, rows))

    def log_artifacts(self, read, made):
        self.calls.append(("artifacts", read, made))

    def close(self, failed=False):
        self.calls.append(("close", failed))


@pytest.fixture
def recorder(monkeypatch):
    sink = Recorder()
    monkeypatch.setattr(module, "TensorBoardSink", lambda *arguments: sink)
    return sink


def test_a_point_reaches_every_place(tmp_path, recorder):
    with Tracker.open(tmp_path / "new" / "run", config(tensorboard=True), {}, "ppo") as tracker:
        tracker.log({"ppo/kl": np.float32(0.5), "ppo/components/polite": 1}, 3)
    assert read_series(tmp_path / "new" / "run") == {"ppo/kl": [(3, 0.5)], "ppo/components/polite": [(3, 1.0)]}
    assert recorder.calls == [("log", {"ppo/kl": 0.5, "ppo/components/polite": 1.0}, 3), ("close", False)]


def test_tensorboard_can_be_switched_off(tmp_path):
    with Tracker.open(tmp_path, config(tensorboard=False), {}, "ppo") as tracker:
        tracker.log({"ppo/kl": 0.5}, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_an_undocumented_name_is_refused_before_anything_is_written(tmp_path):
    with (
        Tracker.open(tmp_path, config(), {}, "ppo") as tracker,
        pytest.raises(ValueError, match="unknown metric 'ppo/k'"),
    ):
        tracker.log({"ppo/kl": 0.5, "ppo/k": 1.0}, 0)
    assert read_series(tmp_path) == {}


def test_rollouts_are_kept_and_handed_on_whole(tmp_path, recorder):
    rows = [{"index": i, "response": str(i), "score": math.nan, "tokens": [{"id": i}]} for i in range(5)]
    with Tracker.open(tmp_path, config(tensorboard=True), {}, "ppo") as tracker:
        tracker.log_rollouts(rows, 7)
    [path] = rollouts.list_files(tmp_path).values()
    assert [row["response"] for row in rollouts.read(path)] == ["0", "1", "2", "3", "4"]
    kind, shown, iteration = recorder.calls[0]
    assert (kind, iteration, [row["response"] for row in shown]) == ("rollouts", 7, ["0", "1", "2", "3", "4"])


def test_a_resumed_stage_discards_the_rollouts_that_it_repeats(tmp_path):
    for first in (1, 3):
        with Tracker.open(tmp_path, config(), {}, "ppo") as tracker:
            for iteration in range(first, 5 if first == 1 else 4):
                tracker.log_rollouts([{"index": first}], iteration)
    found = {iteration: rollouts.read(path)[0]["index"] for iteration, path in rollouts.list_files(tmp_path).items()}
    assert found == {1: 1, 2: 1, 3: 3}


def test_a_repeated_stage_says_that_it_replaces_rollouts(tmp_path, caplog):
    for _ in range(2):
        with Tracker.open(tmp_path, config(), {}, "ppo") as tracker:
            for iteration in (1, 2):
                tracker.log_rollouts([{"index": 0}], iteration)
    assert [record.getMessage() for record in caplog.records] == [
        "rollouts of iterations 1 to 2, of an earlier attempt, are replaced"
    ]


def test_tables_and_artifacts_are_handed_on(tmp_path, recorder):
    made = Artifact("ppo", "model", tmp_path, {})
    with Tracker.open(tmp_path, config(tensorboard=True), {}, "evaluate") as tracker:
        tracker.log_table("responses", [{"prompt": "Hi"}])
        tracker.log_artifacts([], [made])
    assert recorder.calls[:2] == [("table", "responses", [{"prompt": "Hi"}]), ("artifacts", [], [made])]


def test_an_error_in_the_stage_marks_the_run_as_failed(tmp_path, recorder):
    with pytest.raises(RuntimeError), Tracker.open(tmp_path, config(tensorboard=True), {}, "ppo"):
        raise RuntimeError
    assert recorder.calls == [("close", True)]


def test_a_place_that_fails_keeps_nothing_from_the_others(tmp_path, recorder, monkeypatch, caplog):
    def fail(*arguments):
        raise OSError("disk full")

    monkeypatch.setattr(recorder, "log", fail)
    with Tracker.open(tmp_path, config(tensorboard=True), {}, "ppo") as tracker:
        for step in (1, 2, 3):
            tracker.log({"ppo/kl": 0.5}, step)
    tracker.close()  # a second time is harmless
    assert read_series(tmp_path) == {"ppo/kl": [(1, 0.5), (2, 0.5), (3, 0.5)]}
    assert caplog.text.count("TensorBoard is off for the rest of this stage: OSError: disk full") == 1


def test_even_metrics_that_cannot_be_written_do_not_end_a_stage(tmp_path, caplog):
    (tmp_path / "metrics.jsonl").mkdir()
    (tmp_path / "rollouts").touch()
    with Tracker.open(tmp_path, config(), {}, "ppo") as tracker:
        tracker.log({"ppo/kl": 0.5}, 1)
        tracker.log_rollouts([{"index": 1}], 1)
    assert [record.getMessage().split(" is off")[0] for record in caplog.records] == ["metrics.jsonl", "rollouts"]


def test_a_metric_outside_its_range_is_warned_of(tmp_path, caplog):
    with Tracker.open(tmp_path, config(), {}, "ppo") as tracker:
        for step in range(1, 6):
            tracker.log({"ppo/stopped_share": 0.25, "ppo/kl": 1.0}, step)
    [record] = caplog.records
    assert record.getMessage().startswith(
        "ppo/stopped_share is 0.25 share at step 3, 3 times in a row; healthy is 0.5 to 1. Most responses are cut off"
    )


def test_the_bar_belongs_to_the_stage_and_knows_its_place(tmp_path):
    with Tracker.open(tmp_path, config(), {}, "ppo", place="stage 3 of 4") as tracker:
        tracker.progress.start(4, unit="iterations")
        tracker.progress.update(1)
        assert tracker.progress.line().startswith("1/4 iterations")


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert not is_main_process()
    with Tracker.open(tmp_path / "run", config(tensorboard=True), {}, "ppo") as tracker:
        assert isinstance(tracker, NullTracker)
        tracker.log({"ppo/kl": 0.5}, 0)
        tracker.log_rollouts([{"index": 1}], 0)
        tracker.log_table("responses", [{"prompt": "Hi"}])
    assert list(tmp_path.iterdir()) == []


def test_the_first_process_of_many_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    with Tracker.open(tmp_path, config(), {}, "ppo") as tracker:
        tracker.log({"ppo/kl": 0.5}, 0)
    assert read_series(tmp_path) == {"ppo/kl": [(0, 0.5)]}


def test_wandb_disabled_is_not_even_imported(tmp_path):
    program = (
        "import sys; from types import SimpleNamespace as N; from rlhf.tracking.tracker import Tracker\n"
        "w = N(**dict.fromkeys(('project', 'entity', 'group', 'name', 'tags', 'artifacts')), mode='disabled')\n"
        "c = N(wandb=w, tensorboard=False, rollout_rows_per_table=1)\n"
        f"with Tracker.open({str(tmp_path)!r}, c, {{}}, 'sft') as t: t.log({{'sft/loss': 1.0}}, 0)\n"
        "print([name for name in ('wandb', 'torch', 'tensorboard') if name in sys.modules])"
    )
    root = Path(module.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
