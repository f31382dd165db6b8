"""W&B beyond this process: a local stand-in for its server, its own `wandb sync`, and a service process that dies."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from wandb_files import offline_runs
from wandb_server import stand_in

from rlhf.tracking.jsonl import read_series

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]

STAGES = """
import os, signal, sys
from pathlib import Path
from rlhf.config.schema import TrackingConfig
from rlhf.tracking.sink import Artifact
from rlhf.tracking.tracker import Tracker

run, kill = Path(sys.argv[1]), sys.argv[2:] == ["kill"]
(run / "sft").mkdir(parents=True, exist_ok=True)
(run / "sft" / "config.json").write_text("{}")
sft = Artifact("sft", "model", run / "sft", {})

def kill_service():
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"wandb-core" in (process / "cmdline").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
        except OSError:
            continue

for stage in ("sft", "reward"):
    with Tracker.open(run, TrackingConfig(tensorboard=False), {"seed": 1}, stage) as tracker:
        for step in (1, 2, 3):
            tracker.log({f"{stage}/loss": 1.0 / step}, step)
            if kill and (stage, step) == ("sft", 1):
                kill_service()
                while not tracker._sinks[-1].sink is None:  # until W&B's client notices
                    tracker.log({"sft/loss": 1.0}, 1)
        tracker.log_table("t", [{"a": 1}])
        tracker.log_artifacts([sft] if stage == "reward" else [], [sft] if stage == "sft" else [])
"""


def track(run_dir, *arguments, **variables):
    """Two stages in a process of their own."""
    keep = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    environment = {**keep, "PYTHONPATH": str(ROOT), "HOME": str(run_dir.parent), **variables}
    command = [sys.executable, "-c", STAGES, str(run_dir), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def losses(rows, stage):
    return [(row[f"{stage}/step"], row[f"{stage}/loss"]) for row in rows if f"{stage}/loss" in row]


EXPECTED = [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3, abs=1e-12))]


def test_an_online_run_streams_metrics_and_lineage(tmp_path):
    with stand_in() as server:
        done = track(tmp_path / "run", WANDB_BASE_URL=server.url, WANDB_API_KEY="a" * 40, WANDB_MODE="online")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    started = {v["name"]: v for v in reversed(server.variables("UpsertBucket")) if v.get("groupName")}
    assert [(v["groupName"], v["jobType"], v["project"]) for v in started.values()][::-1] == [
        ("run", "sft", "rlhf"),
        ("run", "reward", "rlhf"),
    ]
    reward, sft = started
    assert losses(server.rows[sft], "sft") == EXPECTED
    assert losses(server.rows[reward], "reward") == EXPECTED
    assert "run-sft" in [v["input"]["artifactCollectionName"] for v in server.variables("CreateArtifact")]
    assert [v["input"]["runName"] for v in server.variables("UseArtifact")] == [reward]
    assert offline_runs(tmp_path / "run") == {}


def test_offline_files_are_read_by_wandb_sync(tmp_path):
    run = tmp_path / "run"
    assert track(run).returncode == 0
    offline = {stage: sessions[0] for stage, sessions in offline_runs(run).items()}
    with stand_in() as server:
        environment = {**os.environ, "WANDB_BASE_URL": server.url, "WANDB_API_KEY": "a" * 40, "HOME": str(tmp_path)}
        folders = sorted(map(str, run.glob("wandb/offline-run-*")))
        command = [sys.executable, "-m", "wandb", "sync", *folders]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in ("sft", "reward"):
        assert losses(server.rows[offline[stage].run.run_id], stage) == EXPECTED


def test_a_dead_service_process_ends_no_training(tmp_path):
    done = track(tmp_path / "run", "kill")
    assert done.returncode == 0, done.stderr
    [warning] = done.stderr.splitlines()
    assert warning.startswith("W&B is off for the rest of this stage: ")
    assert read_series(tmp_path / "run")["sft/loss"] == EXPECTED
    assert losses(offline_runs(tmp_path / "run")["reward"][0].history, "reward") == EXPECTED  # a new process


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://nowhere.invalid"])
def test_online_without_a_network_goes_on_offline(tmp_path, url):
    done = track(tmp_path / "run", WANDB_BASE_URL=url, WANDB_API_KEY="a" * 40, WANDB_MODE="online")
    assert done.returncode == 0
    assert [line.startswith(f"W&B goes on offline: {url} ") for line in done.stderr.splitlines()] == [True, True]
    assert set(offline_runs(tmp_path / "run")) == {"sft", "reward"}
