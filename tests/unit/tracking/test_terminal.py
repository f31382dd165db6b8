"""What the terminal shows in each mode."""

import json
import logging

import pytest

from rlhf.tracking import terminal
from rlhf.tracking.progress import StageProgress


@pytest.fixture(autouse=True)
def _restored():
    yield
    terminal.use("normal")


def speak():
    terminal.say("sft: not finished yet", event="stage", stage="sft", number=1)
    terminal.say("Run folder: runs/x", event="run_folder", result=True, path="runs/x")
    terminal.emit({"event": "metrics", "step": 3, "sft/loss": 0.5})


def test_normal_is_text(capsys):
    speak()
    assert capsys.readouterr().out == "sft: not finished yet\nRun folder: runs/x\n"


def test_quiet_shows_results_only_and_no_warnings(capsys):
    terminal.use("quiet")
    speak()
    assert capsys.readouterr().out == "Run folder: runs/x\n"
    assert not logging.getLogger("rlhf.tracking.tracker").isEnabledFor(logging.WARNING)
    terminal.use("normal")
    assert logging.getLogger("rlhf.tracking.tracker").isEnabledFor(logging.WARNING)


def test_json_is_one_object_a_line(capsys):
    terminal.use("json")
    speak()
    terminal.console().print("a table")
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"event": "stage", "stage": "sft", "number": 1},
        {"event": "run_folder", "path": "runs/x"},
        {"event": "metrics", "step": 3, "sft/loss": 0.5},
    ]


@pytest.mark.parametrize(("mode", "lines"), [("normal", 2), ("quiet", 0), ("json", 0)])
def test_progress_is_for_people(mode, lines, capsys):
    terminal.use(mode)
    with StageProgress("sft") as progress:
        progress.start(2)
        progress.update(1)
        progress.update(2)
    assert len(capsys.readouterr().out.splitlines()) == lines


def test_other_processes_are_silent(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    for mode in ("normal", "json"):
        terminal.use(mode)
        speak()
    assert capsys.readouterr().out == ""
