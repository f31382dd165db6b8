"""Signs of trouble: a metric outside its range for three points, in all of fewer, or no number at all."""

import math

import pytest

from rlhf.tracking.metrics import METRICS
from rlhf.tracking.watch import Watch, signs_of_trouble


def told(watch, *values, name="ppo/kl"):
    return [[str(sign) for sign in watch.see({name: value}, step)] for step, value in enumerate(values, start=1)]


def test_three_points_in_a_row_are_a_sign_and_it_is_told_once():
    signs = told(Watch(), 31.0, 32.0, 33.5, 34.0, 1.0, 40.0, 41.0, 42.0)
    assert [len(found) for found in signs] == [0, 0, 1, 0, 0, 0, 0, 0]
    assert signs[2][0].startswith(
        "ppo/kl is 33.5 nats at step 3, 3 times in a row; healthy is -1 to 30. Too far from the reference"
    )
    assert "raise ppo.kl.coefficient" in signs[2][0]


def test_a_healthy_point_in_between_begins_the_count_anew():
    assert told(Watch(), 31.0, 32.0, 30.0, 31.0, 32.0) == [[]] * 5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_is_told_at_once(value):
    [[sign]] = told(Watch(), value, name="ppo/score")
    assert sign.startswith(f"ppo/score is {value} score at step 1")


def test_the_end_of_a_short_stage_tells_what_was_never_healthy():
    watch = Watch()
    watch.see({"evaluate/win_rate": 0.25, "evaluate/prompts": 9.0, "ppo/kl": 5.0}, 1)
    watch.see({"ppo/kl": 50.0}, 2)  # healthy before, and once may be chance
    assert [(sign.name, sign.points) for sign in watch.end()] == [("evaluate/win_rate", 1)]
    assert watch.end() == []


def test_a_history_ends_with_its_signs():
    history = {
        "ppo/kl": [(1, 40.0), (2, 40.0), (3, 40.0), (4, 2.0)],  # mended
        "ppo/clip_fraction": [(1, 0.1), (2, 0.5), (3, 0.6), (4, 0.7)],
        "ppo/ratio": [(1, 1.0), (2, 2.0), (3, 2.0)],  # not for long enough
        "evaluate/after/distinct_2": [(1, 0.01)],
        "evaluate/before/distinct_2": [(1, 0.01)],  # that policy came with the run
        "unknown/name": [(1, 1e9)],
    }
    signs = signs_of_trouble(history)
    assert [(sign.name, sign.value, sign.step, sign.points) for sign in signs] == [
        ("ppo/clip_fraction", 0.7, 4, 3),
        ("evaluate/after/distinct_2", 0.01, 1, 1),
    ]
    assert signs[0].metric is METRICS["ppo/clip_fraction"]


@pytest.mark.parametrize(("value", "healthy"), [(0.5, True), (1.0, True), (0.49, False), (1.01, False)])
def test_the_ends_of_a_range_are_healthy(value, healthy):
    assert METRICS["ppo/stopped_share"].is_healthy(value) is healthy
