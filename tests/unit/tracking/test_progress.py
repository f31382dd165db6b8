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
    assert lines[0] == "sft: 4/40 steps  loss 0.5  about 36 s left"
    assert lines[-1] == "sft: 40/40 steps  loss 0.5  took 0:40"


def test_a_resumed_stage_does_not_repeat_the_lines_of_its_past():
    console = log_file()
    with StageProgress("ppo", unit="iterations", console=console, enabled=True, clock=Clock()) as progress:
        progress.start(10, completed=8)
        progress.update(8.5)
        progress.update(9)
    assert console.file.getvalue().splitlines() == ["ppo: 9/10 iterations  about 0 s left"]


def test_a_terminal_gets_a_bar_with_the_note_and_the_time_left():
    clock = Clock()
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    with StageProgress("ppo", unit="iterations", console=console, enabled=True, clock=clock) as progress:
        progress.start(4)
        clock.now += 60
        progress.update(1, score=0.25)
        progress.note("rollout")
        assert progress.line() == "1/4 iterations  score 0.25  rollout  about 3 min left"
    assert "1/4 iterations  score 0.25  rollout  about 3 min left" in console.file.getvalue()


def test_the_first_unit_is_left_out_of_the_pace():
    clock = Clock()
    pace = Pace(clock)
    pace.start(total=10, completed=0)
    clock.now += 60  # compiles
    pace.update(1)
    assert pace.seconds_left() == pytest.approx(9 * 60, abs=1e-9)  # all that is known so far
    for done in (2, 3):
        clock.now += 5
        pace.update(done)
    assert pace.seconds_left() == pytest.approx(7 * 5, abs=1e-9)


def test_a_spinner_turns_until_the_work_begins_and_the_place_is_shown():
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    with StageProgress("reward", place="stage 2 of 4", console=console, enabled=True, clock=Clock()) as progress:
        progress.load()
        assert progress.line() == "loading"
        progress.start(8)
        progress.update(2)
        progress.load("saving")
        assert progress.line() == "saving"
    shown = console.file.getvalue()
    assert shown.count("reward, stage 2 of 4") >= 3
    assert "2/8 steps" in shown


def test_phase_and_tokens_per_second_stand_in_the_line():
    clock, console = Clock(), Console(file=io.StringIO(), force_terminal=True, width=160)
    with StageProgress("ppo", unit="iterations", console=console, enabled=True, clock=clock) as progress:
        progress.start(4)
        progress.note("rollout")
        progress.count_tokens(100)
        progress.count_tokens(50)
        clock.now += 3
        assert progress.line() == "0/4 iterations  rollout 50 tokens/s  time left unknown"
        progress.note("update")
        assert progress.line() == "0/4 iterations  update  time left unknown"


def test_a_narrow_terminal_keeps_the_numbers_and_leaves_out_the_bar():
    console = Console(file=io.StringIO(), force_terminal=True, width=60)
    with StageProgress("ppo", unit="iterations", place="stage 3 of 4", console=console, enabled=True) as progress:
        progress.start(4)
        progress.update(1, score=0.25)
    assert "stage 3 of 4\x1b[0m 1/4 iterations  score 0.25  about 0 s left\n" in console.file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"), [(59.4, "about 59 s left"), (480, "about 8 min left"), (9000, "about 2.5 h left")]
)
def test_the_time_left_is_no_more_exact_than_it_is_known(seconds, text):
    clock = Clock()
    with StageProgress("sft", enabled=False, clock=clock) as progress:
        progress.start(2)
        clock.now += seconds
        progress.update(1)
        assert progress.line() == f"1/2 steps  {text}"


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
