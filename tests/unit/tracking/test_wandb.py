"""W&B: offline without account, home or network; a run for each stage, read back from its files; never in the way."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from wandb_files import offline_runs

import rlhf.tracking.wandb as module
from rlhf.tracking.sink import Artifact
from rlhf.tracking.wandb_runs import StageRun
from rlhf.tracking.wandb_settings import WandbSettings

SESSIONS = """
import sys
from pathlib import Path
from rlhf.config.schema import TrackingConfig
from rlhf.tracking.sink import Artifact
from rlhf.tracking.tracker import Tracker

run = Path(sys.argv[1])
config = TrackingConfig(tensorboard=False, rollout_rows_per_table=2, wandb={"tags": ["a"], "group": "g"})
(run / "sft").mkdir(parents=True)
(run / "sft" / "config.json").write_text("{}")
sft, ppo = Artifact("sft", "model", run / "sft", {}), Artifact("ppo", "model", run / "sft", {})
data = Artifact("ppo-data", "dataset", None, {"source": "org/prompts"})
token = {"id": 1, "text": "<i>", "reward": 0.5, "kl": 0.25, "value": 0.0, "advantage": 1.0}
numbers = {"reward": 1.0, "tokens": [token, token]}

def session(stage, fingerprint, steps, read=(), made=()):
    with Tracker.open(run, config, {"seed": 1, "model": {"path": "x"}}, stage, fingerprint) as tracker:
        for step in steps:
            if stage == "ppo":
                row = {"prompt": "<b>", "score": 1.0, "kl": 0.5, "length": 2, **numbers}
                tracker.log_rollouts([{"index": i, "response": f"r{step}-{i}", **row} for i in range(5)], step)
            tracker.log({f"{stage}/learning_rate": 0.1 * step, f"{stage}/gradient_norm": 2.0}, step)
        tracker.log_table("examples", [{"a": 1, "b": "x"}, {"a": 0.5, "b": None}])
        tracker.log_artifacts(read, made)

session("sft", "s", [1], made=[sft])
session("ppo", "p", [1, 2])
session("ppo", "p", [2, 3], read=[sft, data], made=[ppo])  # resumed: step 2 is computed again
session("ppo", "other", [1])
"""


@pytest.fixture(scope="module")
def tracked(tmp_path_factory):
    """Four sessions in a process whose home cannot be written to, without terminal or server."""
    run_dir = tmp_path_factory.mktemp("runs") / "support"
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB_", "RANK", "XDG_"))}
    environment = {
        **keep,
        "HOME": "/dev/null",
        "PYTHONPATH": str(Path(module.__file__).parents[2]),
        "WANDB_BASE_URL": "http://127.0.0.1:9",
    }
    done = subprocess.run(
        [sys.executable, "-c", SESSIONS, str(run_dir)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return run_dir, done


@pytest.fixture(scope="module")
def runs(tracked):
    return offline_runs(tracked[0])


def table(run_dir, name):
    [path] = run_dir.glob(f"wandb/offline-run-*/files/media/table/{name}_*.table.json")
    return json.loads(path.read_text())


def test_an_unwritable_home_is_no_matter_and_nothing_is_asked(tracked):
    _, done = tracked
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == ("", "rollouts of iterations 2 to 2, of an earlier attempt, are replaced\n"
        "rollouts of iterations 1 to 3, of an earlier attempt, are replaced\n")  # fmt: skip


def test_a_stage_is_a_run_with_job_type_group_and_tags(tracked, runs):
    [sft], [ppo, resumed, other] = runs["sft"], runs["ppo"]
    assert {one.run.run_group for one in (sft, ppo, resumed, other)} == {"g"}
    assert (sft.run.display_name, ppo.run.display_name) == ("support sft", "support ppo")
    assert list(sft.run.tags) == ["a"]
    assert sft.config["seed"] == 1
    assert sft.run.run_id != ppo.run.run_id
    assert [one.exit_code for one in (sft, ppo, resumed, other)] == [0, 0, 0, 0]


def test_the_id_stays_over_resume_and_no_point_is_sent_twice(runs):
    ppo, resumed, _ = runs["ppo"]
    assert ppo.run.run_id == resumed.run.run_id
    assert ppo.curve("ppo/learning_rate") == [(1, 0.1), (2, 0.2)]
    assert resumed.curve("ppo/learning_rate") == [(3, pytest.approx(0.3, abs=1e-12))]
    steps = [row["_step"] for row in ppo.history + resumed.history]
    assert steps == sorted(set(steps))


def test_other_inputs_are_a_new_run_linked_to_the_old_one(runs):
    ppo, _, other = runs["ppo"]
    assert other.run.run_id != ppo.run.run_id
    assert other.config["previous_run"] == ppo.run.run_id
    assert list(other.run.tags) == ["a", "rerun"]
    assert other.curve("ppo/learning_rate") == [(1, 0.1)]


def test_metrics_have_an_axis_a_summary_and_an_explanation(tracked, runs):
    ppo = runs["ppo"][0]
    assert ppo.metrics["ppo/*"].step_metric == "ppo/step"
    assert (ppo.metrics["ppo/score"].summary.max, ppo.metrics["ppo/score"].summary.last) == (True, True)
    assert (runs["sft"][0].metrics["sft/loss"].summary.min, ppo.metrics["ppo/loss/value"].summary.min) == (True, True)
    [path] = tracked[0].glob(f"wandb/offline-run-*{runs['sft'][0].run.run_id}/files/media/table/metrics_*.json")
    explained = json.loads(path.read_text())
    assert explained["columns"] == ["metric", "meaning", "unit", "healthy", "outside", "summary"]
    rows = {row[0]: row for row in explained["data"]}
    assert rows["sft/loss"][1:4] == ["Training loss, mean since the last logged step", "nats", ""]
    assert rows["sft/gradient_norm"][3] == "1e-07 to 100"


def test_every_iteration_has_a_table_a_token_page_and_histograms(tracked, runs):
    run_dir, _ = tracked
    found = table(run_dir, "rollouts/iteration_000003")
    column = found["columns"].index("response")
    assert [row[column] for row in found["data"]] == ["r3-0", "r3-1"]
    assert "tokens" not in found["columns"]
    [row] = [row for row in runs["ppo"][1].history if "rollouts/iteration_000003" in row]
    assert row["ppo/step"] == 3
    names = {key.rpartition("/")[2]: value["_type"] for key, value in row.items() if key.startswith("ppo/histograms/")}
    assert names == dict.fromkeys(["reward", "kl", "length", "advantage", "ratio_to_reference"], "histogram")
    assert sum(row["ppo/histograms/reward"]["values"]) == 5
    folder = run_dir / "wandb"
    [page] = folder.glob(f"offline-run-*/files/{row['ppo/token_view']['path']}")
    assert "Iteration 3" in page.read_text("utf-8")
    assert "<b></p>" not in page.read_text("utf-8")
    assert "&lt;b&gt;</p>" in page.read_text("utf-8")


def test_models_and_data_join_the_stages(runs):
    def of_user(one):
        return {a.name: (a.type, a.use_after_commit) for a in one.artifacts if a.type != "run_table"}

    assert of_user(runs["sft"][0]) == {"g-sft": ("model", False)}
    assert of_user(runs["ppo"][1]) == {
        "g-sft": ("model", True),
        "g-ppo-data": ("dataset", True),
        "g-ppo": ("model", False),
    }
    [made] = [a for a in runs["sft"][0].artifacts if a.name == "g-sft"]
    [read] = [a for a in runs["ppo"][1].artifacts if a.name == "g-sft"]
    assert made.digest == read.digest
    assert [entry.path for entry in made.manifest.contents] == ["config.json"]


def test_a_table_is_logged_whole(tracked, runs):
    run_dir, _ = tracked
    [path] = run_dir.glob(f"wandb/offline-run-*{runs['sft'][0].run.run_id}/files/media/table/examples_*.json")
    assert json.loads(path.read_text())["data"] == [[1, "x"], [0.5, None]]


def test_everything_lies_in_the_run_folder(tracked):
    run_dir, _ = tracked
    assert {path.name for path in run_dir.iterdir()} == {"metrics.jsonl", "rollouts", "sft", "wandb", "wandb_runs.json"}
    assert (run_dir / "wandb" / "data").is_dir()


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
    started, run = [], FakeRun()

    def init(**options):
        started.append(options)
        return run

    monkeypatch.setattr(module, "_why_not_online", lambda: None)
    monkeypatch.setattr(module.wandb, "init", init)
    return SimpleNamespace(started=started, run=run)


SETTINGS = WandbSettings("online", "p", "team", "g", "n", ("a", "b"), "reference")


def open_sink(run_dir, stage="ppo", calls=0, identity=None):
    return module.WandbSink(run_dir, SETTINGS, {"seed": 3}, stage, identity or StageRun("id1", ""), calls, 64)


def test_settings_and_config_reach_wandb(fake, tmp_path):
    open_sink(tmp_path, "sft")
    [options] = fake.started
    expected = {"project": "p", "entity": "team", "group": "g", "tags": ["a", "b"], "mode": "online", "id": "id1"}
    assert {key: options[key] for key in expected} == expected
    assert (options["name"], options["job_type"], options["resume"]) == ("n sft", "sft", "allow")
    assert options["config"] == {"seed": 3, "stage": "sft", "run_folder": tmp_path.name}
    assert options["dir"] == tmp_path
    assert options["settings"].silent is True


def test_a_session_goes_on_behind_what_the_server_has(fake, tmp_path):
    fake.run.step = 500
    open_sink(tmp_path).log({"ppo/kl": 0.5}, 1)
    assert fake.run.logged[-1] == (502, {"ppo/kl": 0.5, "ppo/step": 1})


def test_a_table_never_shares_a_row_with_the_next_point(fake, tmp_path):
    sink = open_sink(tmp_path)
    for step in (1, 2):
        sink.log({"ppo/kl": 1.0}, step)
        sink.log_table("t", [{"a": step}])
    steps = [step for step, _ in fake.run.logged]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize(("failed", "code"), [(False, 0), (True, 1)])
def test_wandb_learns_how_the_stage_ended(fake, tmp_path, failed, code):
    open_sink(tmp_path).close(failed)
    assert fake.run.exit_code == code


def test_empty_tables_are_not_logged(fake, tmp_path):
    sink = open_sink(tmp_path, identity=StageRun("id1", "", sent={"ppo/kl": 1}))
    sink.log_rollouts([], 1)
    sink.log_table("t", [])
    assert fake.run.logged == []


def test_artifacts_can_be_left_out(fake, tmp_path):
    settings = WandbSettings("online", "p", None, "g", "n", (), "none")
    sink = module.WandbSink(tmp_path, settings, {}, "ppo", StageRun("id1", ""), 0, 64)
    sink.log_artifacts([], [Artifact("ppo", "model", tmp_path, {})])  # FakeRun has no such method


@pytest.mark.parametrize(
    ("url", "why"),
    [("http://127.0.0.1:9", "cannot be reached"), ("http://nowhere.invalid", "cannot be reached|does not answer")],
)
def test_a_service_that_does_not_answer_means_offline(monkeypatch, tmp_path, caplog, url, why):
    modes = []
    monkeypatch.setattr(module.wandb, "setup", lambda settings: SimpleNamespace(settings=SimpleNamespace(base_url=url)))
    monkeypatch.setattr(module.wandb, "init", lambda **options: modes.append(options["mode"]) or FakeRun())
    open_sink(tmp_path)
    assert modes == ["offline"]
    [record] = caplog.records
    assert re.search(rf"W&B goes on offline: {url}.*({why}).*wandb sync {tmp_path}/wandb", record.getMessage())


def test_a_run_that_the_service_refuses_goes_on_offline(fake, monkeypatch, tmp_path, caplog):
    modes, ended = [], []

    def init(**options):
        modes.append(options["mode"])
        if options["mode"] == "online":
            raise module.wandb.Error("permission denied")
        return FakeRun()

    monkeypatch.setattr(module.wandb, "init", init)
    monkeypatch.setattr(module.wandb, "teardown", lambda: ended.append(True))
    open_sink(tmp_path)
    assert (modes, ended) == (["online", "offline"], [True])
    assert "W&B goes on offline: permission denied" in caplog.text


def test_without_a_key_a_run_goes_on_offline_and_nothing_is_asked(monkeypatch, tmp_path, caplog):
    asked = []
    monkeypatch.setattr(module, "_ask", lambda url, found: found.clear())
    monkeypatch.setattr(module.wandb, "login", lambda **options: asked.append(options) or False)
    monkeypatch.setattr(module.wandb, "init", lambda **options: FakeRun())
    open_sink(tmp_path)
    assert asked == [{"prompt": False, "verify": False}]
    assert "there is no API key (run `wandb login`, or set WANDB_API_KEY)" in caplog.text
