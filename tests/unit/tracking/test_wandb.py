"""W&B: offline without account, prompt or network; one run for all stages; tables that keep all rows."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

import rlhf.tracking.wandb as module
from rlhf.errors import ConfigError

TWO_STAGES = """
import sys
from types import SimpleNamespace
from rlhf.tracking.tracker import Tracker

wandb = SimpleNamespace(mode="offline", project="p", entity=None, group="g", tags=["a"])
config = SimpleNamespace(wandb=wandb, tensorboard=False, report=False, rollout_rows_per_table=2)
for stage in ("sft", "ppo"):
    with Tracker.open(sys.argv[1], config, {"seed": 1, "model": {"path": "x"}}, stage) as tracker:
        for step in range(3):
            tracker.log({f"{stage}/learning_rate": 0.1, f"{stage}/gradient_norm": float("nan")}, step)
            if stage == "ppo":
                rows = [{"index": i, "response": f"r{step}-{i}", "score": 1.0, "tokens": [{"id": 1}]} for i in range(5)]
                tracker.log_rollouts(rows, step + 1)
        tracker.log_table("examples", [{"a": 1, "b": "x"}, {"a": 0.5, "b": None}])
"""


@pytest.fixture(scope="module")
def offline_run(tmp_path_factory):
    """Two stages tracked in a process that has no home, no terminal and no way to a server."""
    home = tmp_path_factory.mktemp("home")
    run_dir = tmp_path_factory.mktemp("runs") / "support"
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "RANK"))}
    environment = {
        **keep,
        "HOME": str(home),
        "PYTHONPATH": str(Path(module.__file__).parents[2]),
        "WANDB_SILENT": "true",
        "WANDB_BASE_URL": "http://127.0.0.1:9",
    }
    done = subprocess.run(
        [sys.executable, "-c", TWO_STAGES, str(run_dir)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return run_dir, done


def tables(run_dir, name):
    paths = run_dir.glob(f"wandb/offline-run-*/files/media/table/{name}_*.table.json")
    return [json.loads(path.read_text()) for path in sorted(paths, key=lambda path: int(path.name.split("_")[1]))]


def test_offline_asks_and_says_nothing(offline_run):
    _, done = offline_run
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_all_stages_write_to_one_run(offline_run):
    run_dir, _ = offline_run
    run_id = (run_dir / "wandb_id").read_text().strip()
    folders = sorted(path.name for path in (run_dir / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert all(run_id in name for name in folders)


def test_metrics_and_config_are_in_the_run(offline_run):
    run_dir, _ = offline_run
    logs = [path.read_bytes() for path in sorted((run_dir / "wandb").glob("offline-run-*/*.wandb"))]
    for content, stage in zip(logs, ("sft", "ppo"), strict=True):
        assert f"{stage}/learning_rate".encode() in content
        assert f"{stage}/step".encode() in content
        assert b"seed" in content


def test_rollouts_of_all_iterations_stand_under_one_key(offline_run):
    run_dir, _ = offline_run
    increments = tables(run_dir, "rollouts")
    column = increments[0]["columns"].index("response")
    assert [[row[column] for row in table["data"]] for table in increments] == [
        ["r0-0", "r0-1"],
        ["r1-0", "r1-1"],
        ["r2-0", "r2-1"],
    ]
    assert "tokens" not in increments[0]["columns"]


def test_a_table_is_logged_whole(offline_run):
    run_dir, _ = offline_run
    assert [table["data"] for table in tables(run_dir, "examples")] == [[[1, "x"], [0.5, None]]] * 2


class FakeRun:
    """Notes what is logged at which step, and refuses steps that go back, as W&B does (by dropping them)."""

    def __init__(self, step=0):
        self.step = step
        self.logged = []
        self.exit_code = None

    def define_metric(self, name, **options):
        pass

    def log(self, data, step):
        assert step >= self.step, "W&B drops what is logged at an earlier step"
        self.step = step
        self.logged.append((step, data))

    def finish(self, exit_code):
        self.exit_code = exit_code


@pytest.fixture
def fake(monkeypatch):
    """A W&B that is online, logged in, and remembers how it was started."""
    started = []

    def init(**options):
        started.append(options)
        return started_run[0]

    started_run = [FakeRun()]
    monkeypatch.setattr(module.wandb, "login", lambda **options: True)
    monkeypatch.setattr(module.wandb, "init", init)
    return SimpleNamespace(started=started, run=started_run)


OPTIONS = SimpleNamespace(mode="online", project="p", entity="team", group="g", tags=["a", "b"])


def test_options_and_config_reach_wandb(fake, tmp_path):
    module.WandbSink(tmp_path, OPTIONS, {"seed": 3}, "sft", 0)
    (options,) = fake.started
    expected = {"project": "p", "entity": "team", "group": "g", "tags": ["a", "b"], "mode": "online", "resume": "allow"}
    assert {key: options[key] for key in expected} == expected
    assert options["config"] == {"seed": 3}
    assert options["dir"] == tmp_path
    assert options["name"] == tmp_path.name
    assert options["settings"].silent is True


def test_the_run_id_is_made_once(fake, tmp_path):
    for stage in ("sft", "ppo"):
        module.WandbSink(tmp_path, OPTIONS, {}, stage, 0)
    first, second = (options["id"] for options in fake.started)
    assert first == second == (tmp_path / "wandb_id").read_text().strip()
    assert len(first) == 8


def test_each_point_carries_its_stage_step_and_the_inner_step_only_grows(fake, tmp_path):
    first = module.WandbSink(tmp_path, OPTIONS, {}, "sft", 0)
    for step in (10, 20):
        first.log({"sft/loss": 1.0}, step)
        first.log_table("t", [{"a": step}])
    second = module.WandbSink(tmp_path, OPTIONS, {}, "ppo", 2)  # the same run goes on, two lines later
    second.log_table("t", [{"a": 0}])
    second.log({"ppo/kl": 0.5}, 0)
    metrics = [data for _, data in fake.run[0].logged if "t" not in data]
    assert metrics == [
        {"sft/loss": 1.0, "sft/step": 10},
        {"sft/loss": 1.0, "sft/step": 20},
        {"ppo/kl": 0.5, "ppo/step": 0},
    ]
    steps = [step for step, _ in fake.run[0].logged]
    assert steps == sorted(steps)
    assert len(set(steps[:4])) == 4  # a table never shares a row with the next point


def test_a_session_goes_on_behind_what_the_server_has(fake, tmp_path):
    fake.run[0].step = 500
    module.WandbSink(tmp_path, OPTIONS, {}, "ppo", 0).log({"ppo/kl": 0.5}, 0)
    assert fake.run[0].logged[0][0] > 500


@pytest.mark.parametrize(("failed", "code"), [(False, 0), (True, 1)])
def test_wandb_learns_how_the_stage_ended(fake, tmp_path, failed, code):
    module.WandbSink(tmp_path, OPTIONS, {}, "ppo", 0).close(failed)
    assert fake.run[0].exit_code == code


def test_empty_tables_are_not_logged(fake, tmp_path):
    sink = module.WandbSink(tmp_path, OPTIONS, {}, "ppo", 0)
    sink.append_to_table("rollouts", [])
    sink.log_table("t", [])
    assert fake.run[0].logged == []


def test_online_without_a_key_is_an_error_that_says_what_to_do(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(module.wandb, "login", lambda **options: asked.append(options) or False)
    with pytest.raises(
        ConfigError, match=r"tracking\.wandb\.mode is online.*WANDB_API_KEY.*tracking\.wandb\.mode=offline"
    ):
        module.WandbSink(tmp_path, OPTIONS, {}, "ppo", 0)
    assert asked == [{"prompt": False, "verify": False}]


def test_a_server_that_cannot_be_reached_is_an_error_with_a_way_out(monkeypatch, tmp_path):
    def init(**options):
        raise module.wandb.Error("no answer within 90 s")

    monkeypatch.setattr(module.wandb, "login", lambda **options: True)
    monkeypatch.setattr(module.wandb, "init", init)
    with pytest.raises(ConfigError, match=r"no answer within 90 s.*offline or disabled"):
        module.WandbSink(tmp_path, OPTIONS, {}, "ppo", 0)
