"""How a run begins: in this process, or in several that it starts."""

from pathlib import Path

import pytest

import rlhf.run.start
from rlhf.config.load import load_config
from rlhf.errors import ConfigError, StageError
from rlhf.run.pipeline import Step
from rlhf.run.start import distributed_overrides, start


@pytest.fixture(autouse=True)
def not_launched(monkeypatch: pytest.MonkeyPatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """What was called instead of the pipeline and the launcher."""
    found: list[tuple] = []
    launched = lambda arguments, processes: found.append(("launch", arguments, processes)) or 7  # noqa: E731
    monkeypatch.setattr(rlhf.run.start, "launch", launched)
    monkeypatch.setattr(rlhf.run.start, "run_pipeline", lambda loaded, only: found.append(("run", only)))
    return found


@pytest.fixture
def config(tmp_path: Path):
    data = tmp_path / "d.jsonl"
    data.touch()
    values = ("model.path=org/base", f"sft.data={data}", f"runs_dir={tmp_path}")
    return lambda *overrides: load_config(None, [*values, *overrides])


def test_one_process_runs_here(config, calls):
    assert start(config(), "sft", ["sft", "my.yaml"]) == 0
    assert calls == [("run", "sft")]


def test_several_processes_are_started_with_the_same_command(config, calls):
    assert start(config("distributed.processes=2"), None, ["run", "my.yaml", "--processes", "2"]) == 7
    assert calls == [("launch", ["run", "my.yaml", "--processes", "2"], 2)]


def test_a_process_that_was_started_by_a_launcher_starts_no_others(config, calls, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "1")
    assert start(config("distributed.processes=2"), None, []) == 0
    assert calls == [("run", None)]


def test_no_processes_are_started_when_everything_is_finished(config, calls, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rlhf.run.start, "make_plan", lambda *_: [Step("sft", "", [], None)])
    assert start(config("distributed.processes=2"), None, []) == 0
    assert calls == [("run", None)]


def test_what_the_plan_shows_is_said_before_processes_are_started(config, calls):
    with pytest.raises(StageError, match="no section ppo"):
        start(config("distributed.processes=2"), "ppo", [])
    assert calls == []


def test_the_command_line_sets_the_distributed_section():
    assert distributed_overrides(None, None) == []
    assert distributed_overrides(2, 3) == ["distributed.processes=2", "distributed.zero=3"]
    assert distributed_overrides(None, 0) == ["distributed.zero=0"]


def test_a_launcher_says_how_many_processes_there_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert distributed_overrides(None, 2) == ["distributed.processes=4", "distributed.zero=2"]
    assert distributed_overrides(4, None) == ["distributed.processes=4"]
    with pytest.raises(ConfigError, match="--processes is 2, but the launcher started 4 processes: leave --processes"):
        distributed_overrides(2, None)
