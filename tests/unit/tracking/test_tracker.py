"""The tracker: everything that is logged reaches every place, in the first process only."""

import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import rlhf.tracking.tracker as module
from rlhf.launch.rank import is_main_process
from rlhf.tracking import rollouts
from rlhf.tracking.jsonl import read_series
from rlhf.tracking.tracker import NullTracker, Tracker


def config(tensorboard=False, rows=2):
    wandb = SimpleNamespace(mode="disabled", project="p", entity=None, group=None, tags=[])
    return SimpleNamespace(wandb=wandb, tensorboard=tensorboard, report=True, rollout_rows_per_table=rows)


class Recorder:
    """A sink that remembers, in the place of W&B."""

    def __init__(self):
        self.calls = []

    def log(self, metrics, step):
        self.calls.append(("log", dict(metrics), step))

    def append_to_table(self, name, rows):
        self.calls.append(("append", name, rows))

    def log_table(self, name, rows):
        self.calls.append(("table", name, rows))

    def close(self, failed=False):
        self.calls.append(("close", failed))


@pytest.fixture
def recorder(monkeypatch):
    sink = Recorder()
    monkeypatch.setattr(module, "_wandb_sink", lambda *arguments, **options: sink)
    return sink


def test_a_point_reaches_every_place(tmp_path, recorder):
    with Tracker.open(tmp_path / "new" / "run", config(tensorboard=True), {}, "ppo") as tracker:
        tracker.log({"ppo/kl": np.float32(0.5), "ppo/components/polite": 1}, 3)
    assert read_series(tmp_path / "new" / "run") == {"ppo/kl": [(3, 0.5)], "ppo/components/polite": [(3, 1.0)]}
    assert recorder.calls == [("log", {"ppo/kl": 0.5, "ppo/components/polite": 1.0}, 3), ("close", False)]
    assert len(list((tmp_path / "new" / "run" / "tensorboard" / "ppo").iterdir())) == 1


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


def test_rollouts_are_kept_whole_and_shown_in_part(tmp_path, recorder):
    rows = [{"index": i, "response": str(i), "score": math.nan, "tokens": [{"id": i}]} for i in range(5)]
    with Tracker.open(tmp_path, config(rows=2), {}, "ppo") as tracker:
        tracker.log_rollouts(rows, 7)
    (path,) = rollouts.list_files(tmp_path).values()
    assert [row["tokens"][0]["id"] for row in rollouts.read(path)] == [0, 1, 2, 3, 4]
    kind, name, shown = recorder.calls[0]
    assert (kind, name) == ("append", "rollouts")
    assert [row["response"] for row in shown] == ["0", "1"]
    assert all("tokens" not in row and row["iteration"] == 7 for row in shown)


def test_a_resumed_stage_discards_the_rollouts_that_it_repeats(tmp_path):
    for first in (1, 3):
        with Tracker.open(tmp_path, config(), {}, "ppo") as tracker:
            for iteration in range(first, 5 if first == 1 else 4):
                tracker.log_rollouts([{"index": first}], iteration)
    found = {iteration: rollouts.read(path)[0]["index"] for iteration, path in rollouts.list_files(tmp_path).items()}
    assert found == {1: 1, 2: 1, 3: 3}


def test_tables_go_to_wandb(tmp_path, recorder):
    with Tracker.open(tmp_path, config(), {}, "evaluate") as tracker:
        tracker.log_table("responses", [{"prompt": "Hi"}])
    assert recorder.calls[0] == ("table", "responses", [{"prompt": "Hi"}])


def test_an_error_in_the_stage_marks_the_run_as_failed(tmp_path, recorder):
    with pytest.raises(RuntimeError), Tracker.open(tmp_path, config(), {}, "ppo"):
        raise RuntimeError
    assert recorder.calls == [("close", True)]


def test_one_place_that_fails_to_close_does_not_keep_the_others_open(tmp_path, recorder, monkeypatch):
    def fail(failed=False):
        raise OSError("disk full")

    tracker = Tracker.open(tmp_path, config(), {}, "ppo")
    monkeypatch.setattr(recorder, "close", fail)
    tracker.log({"ppo/kl": 0.5}, 0)
    with pytest.raises(OSError, match="disk full"):
        tracker.close()
    tracker.close()  # a second time is harmless
    with pytest.raises(ValueError, match="closed file"):
        tracker.log({"ppo/kl": 0.5}, 1)


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
        "c = N(wandb=N(mode='disabled'), tensorboard=False, rollout_rows_per_table=1)\n"
        f"with Tracker.open({str(tmp_path)!r}, c, {{}}, 'sft') as t: t.log({{'sft/loss': 1.0}}, 0)\n"
        "print([name for name in ('wandb', 'torch', 'tensorboard') if name in sys.modules])"
    )
    root = Path(module.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
