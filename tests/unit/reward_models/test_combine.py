"""Combining rewards: the weighted total, and what each kind of failure costs."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch

from reward_models.combine import CombinedReward, Component
from reward_models.errors import RewardError

PROMPTS = ["first prompt", "second prompt", "third prompt"]
COMPLETIONS = ["a", "bb", "ccc"]


def lengths(completions, **_):
    return [float(len(c)) for c in completions]


def constant(values):
    return lambda **_: values


def score(*components, **columns):
    return CombinedReward(components)(PROMPTS, COMPLETIONS, **columns)


def assert_values(actual, expected) -> None:
    np.testing.assert_allclose(actual, np.array(expected, dtype=np.float64), atol=1e-12)


def test_total_is_the_weighted_sum_and_components_stay_raw() -> None:
    scores = score(Component("length", lengths, weight=0.5), Component("other", constant([1, -1, 0]), weight=-2.0))
    assert_values(scores.total, [0.5 - 2, 1.0 + 2, 1.5])
    assert_values(scores.components["length"], [1, 2, 3])
    assert_values(scores.components["other"], [1, -1, 0])
    assert scores.failures == {"length": 0, "other": 0}
    assert scores.total.dtype == np.float64


def test_none_does_not_apply_and_costs_nothing() -> None:
    scores = score(Component("length", lengths), Component("some", constant([None, 10.0, None])))
    assert_values(scores.total, [1, 12, 3])
    assert_values(scores.components["some"], [math.nan, 10, math.nan])
    assert scores.failures["some"] == 0


def test_sample_without_any_component_has_no_total() -> None:
    scores = score(Component("some", constant([None, 0.0, 2.0])), Component("none", constant([None] * 3)))
    assert_values(scores.total, [math.nan, 0, 2])


def test_component_of_weight_0_is_logged_and_does_not_make_a_sample_count() -> None:
    scores = score(Component("some", constant([None, 1.0, 1.0])), Component("watched", lengths, weight=0))
    assert_values(scores.total, [math.nan, 1, 1])
    assert_values(scores.components["watched"], [1, 2, 3])


def test_every_column_is_passed() -> None:
    seen = {}

    def reward(**columns):
        seen.update(columns)
        return [0.0] * 3

    score(Component("r", reward), completion_ids=[[1], [2], [3]], topic=["x", "y", "z"])
    assert seen == {
        "prompts": PROMPTS,
        "completions": COMPLETIONS,
        "completion_ids": [[1], [2], [3]],
        "topic": ["x", "y", "z"],
    }


@pytest.mark.parametrize(
    "values",
    [np.array([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 3.0]), [torch.tensor(1.0), np.float32(2), 3], (True, 2, 3.0)],
)
def test_arrays_tensors_and_booleans_are_numbers(values) -> None:
    assert_values(score(Component("r", constant(values))).total, [1, 2, 3])


def test_no_samples_call_no_function() -> None:
    def reward(**_):
        raise AssertionError

    scores = CombinedReward([Component("r", reward)])([], [])
    assert scores.total.shape == (0,)
    assert scores.components["r"].shape == (0,)
    assert scores.failures == {"r": 0}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "0.5", [0.5]])
def test_value_that_is_no_finite_number_costs_its_own_sample(bad) -> None:
    function = constant([1.0, bad, None])
    base = Component("length", lengths)

    skipped = score(base, Component("bad", function, on_error="skip"))
    assert_values(skipped.total, [2, 2, 3])
    assert_values(skipped.components["bad"], [1, math.nan, math.nan])
    assert skipped.failures == {"length": 0, "bad": 1}

    replaced = score(base, Component("bad", function, weight=2.0, on_error=-1.0))
    assert_values(replaced.total, [3, 0, 3])
    assert_values(replaced.components["bad"], [1, math.nan, math.nan])
    assert replaced.failures["bad"] == 1

    with pytest.raises(RewardError, match=r"'bad' failed on 1 of 3 samples, first on sample 1 .*second prompt"):
        score(base, Component("bad", function))


def raising(**_):
    raise KeyError("gold")


def exiting(**_):
    sys.exit(3)


async def raising_async(**_):
    raise KeyError("gold")


async def exiting_async(**_):
    sys.exit(3)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (raising, r"KeyError: 'gold' \(test_combine.py, line \d+\)"),
        (raising_async, r"KeyError: 'gold' \(test_combine.py, line \d+\)"),
        (exiting, "SystemExit: 3"),
        (exiting_async, "ended itself"),
        (constant([1.0]), "it returned 1 values for 3 samples"),
        (constant(None), "it returned None of type NoneType, not a list"),
        (constant({"a": 1}), "not a list of numbers"),
        (constant("abc"), "of type str"),
    ],
)
@pytest.mark.parametrize("timeout_seconds", [None, 5.0])
def test_function_that_fails_as_a_whole_costs_all_samples_and_never_the_run(function, message, timeout_seconds) -> None:
    base = Component("length", lengths)
    bad = lambda on_error: Component("bad", function, on_error=on_error, timeout_seconds=timeout_seconds)  # noqa: E731
    scores = score(base, bad("skip"))
    assert_values(scores.total, [1, 2, 3])
    assert scores.failures == {"length": 0, "bad": 3}
    assert_values(score(base, bad(10.0)).total, [11, 12, 13])
    with pytest.raises(RewardError, match=f"'bad' failed on all samples.*{message}.*on_error"):
        score(base, bad("raise"))


def test_error_keeps_its_cause() -> None:
    with pytest.raises(RewardError) as caught:
        score(Component("bad", raising))
    assert isinstance(caught.value.__cause__, KeyError)


def test_function_of_messages_on_plain_prompts_is_told_why() -> None:
    with pytest.raises(RewardError, match="Prompts are strings here"):
        score(Component("bad", lambda completions, **_: [len(c[0]["content"]) for c in completions]))


def test_failures_are_logged_with_the_policy(caplog) -> None:
    score(Component("length", lengths), Component("bad", constant([math.nan, math.nan, 1]), on_error="skip"))
    assert "'bad' failed on 2 of 3 samples, first on sample 0" in caplog.text
    assert "on_error is 'skip'" in caplog.text


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("function", 3, "function is 3"),
        ("weight", math.nan, "weight is nan"),
        ("on_error", "ignore", "on_error is 'ignore'; it must be 'raise', 'skip' or a finite number"),
        ("on_error", math.inf, "on_error is inf"),
        ("timeout_seconds", 0, "timeout_seconds is 0"),
        ("timeout_seconds", -1.0, "timeout_seconds is -1"),
    ],
)
def test_component_checks_its_settings(key, value, message) -> None:
    with pytest.raises(RewardError, match=f"'mine': {message}"):
        Component(**{"name": "mine", "function": lengths, key: value})


def test_components_are_checked_together() -> None:
    with pytest.raises(RewardError, match="different names"):
        CombinedReward([Component("a", lengths), Component("a", lengths)])
    with pytest.raises(RewardError, match="weight other than 0"):
        CombinedReward([Component("a", lengths, weight=0)])
    with pytest.raises(RewardError, match="weight other than 0"):
        CombinedReward([])
