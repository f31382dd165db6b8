"""The progress bar: the time left is right, and it is shown in terminals and in log files."""

import io

import pytest
from rich.console import Console

from rlhf.tracking.progress import Pace, StageProgress, format_seconds


class Clock:
    """Seconds that pass only when told to."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


def log_file():
    return Console(file=io.StringIO(), force_terminal=False, width=200)


def test_the_time_left_is_the_mean_pace_times_the_rest():
    clock = Clock()
    pace = Pace(clock)
    pace.start(total=10, completed=0)
    assert pace.seconds_left() is None
    clock.now += 6
    pace.update(2)
    assert pace.seconds_left() == pytest.approx(8 * 3.0, abs=1e-9)


def test_the_time_left_counts_down_between_updates_and_not_below_zero():
    clock = Clock()
    pace = Pace(clock)
    pace.start(total=4, completed=0)
    clock.now += 10
    pace.update(3)
    clock.now += 3
    assert pace.seconds_left() == pytest.approx(10 / 3 - 3, abs=1e-9)
    clock.now += 100
    assert pace.seconds_left() == 0


def test_what_an_earlier_session_did_does_not_make_the_pace_look_better():
    clock = Clock()
    pace = Pace(clock)
    pace.start(total=100, completed=90)
    assert pace.seconds_left() is None
    clock.now += 5
    pace.update(91)
    assert pace.seconds_left() == pytest.approx(9 * 5.0, abs=1e-9)


def test_a_log_file_gets_one_line_for_each_tenth():
    clock, console = Clock(), log_file()
    with StageProgress("sft", console=console, enabled=True, clock=clock) as progress:
        progress.start(40)
        for step in range(1, 41):
            clock.now += 1
            progress.update(step, loss=0.5)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == "sft: 4/40 steps  loss 0.5  0:36 left"
    assert lines[-1] == "sft: 40/40 steps  loss 0.5  took 0:40"


def test_a_resumed_stage_does_not_repeat_the_lines_of_its_past():
    console = log_file()
    with StageProgress("ppo", unit="iterations", console=console, enabled=True, clock=Clock()) as progress:
        progress.start(10, completed=8)
        progress.update(8.5)
        progress.update(9)
    assert console.file.getvalue().splitlines() == ["ppo: 9/10 iterations  0:00 left"]


def test_a_terminal_gets_a_bar_with_the_note_and_the_time_left():
    clock = Clock()
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    with StageProgress("ppo", unit="iterations", console=console, enabled=True, clock=clock) as progress:
        progress.start(4)
        clock.now += 60
        progress.update(1, score=0.25)
        progress.note("rollout")
        assert progress.line() == "1/4 iterations  score 0.25  rollout  3:00 left"
    assert "1/4 iterations  score 0.25  rollout  3:00 left" in console.file.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_other_processes_show_nothing(terminal, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    console = Console(file=io.StringIO(), force_terminal=terminal)
    with StageProgress("sft", console=console) as progress:
        progress.start(2)
        progress.update(2)
    assert console.file.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03")]
)
def test_seconds_are_written_for_people(seconds, text):
    assert format_seconds(seconds) == text
