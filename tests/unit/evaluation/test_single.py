"""One policy in numbers: means over prompts by hand, groups, and what stays out."""

import dataclasses
import math

import pytest
from ppo_helpers import episode

from rlhf.evaluation.paired import Design
from rlhf.evaluation.single import describe, describe_groups

DESIGN = Design(samples_per_prompt=2, resamples=200, seed=0)


def answers(*scores, **changes):
    """Two responses to each prompt, of 3 tokens."""
    made = [episode([5], [3, 4, 1], score, index=number // 2) for number, score in enumerate(scores)]
    return [dataclasses.replace(each, **changes) for each in made]


def test_numbers_by_hand():
    found = describe(answers(1.0, 0.0, 1.0, 1.0, 0.0, 0.5), DESIGN, success_score=1.0)
    assert found["score"]["value"] == pytest.approx((0.5 + 1.0 + 0.25) / 3)
    assert found["avg@2"]["value"] == pytest.approx((0.5 + 1.0 + 0.0) / 3)
    assert found["pass@2"]["value"] == pytest.approx((1 + 1 + 0) / 3)
    assert (found["response_tokens"]["value"], found["stopped_share"]["value"]) == (3.0, 1.0)
    assert found["score"]["prompts"] == 3
    low, high = found["score"]["interval"]
    assert 0.25 <= low < found["score"]["value"] < high <= 1.0


def test_an_interval_is_over_prompts_and_not_over_responses():
    """Two responses that differ say nothing about prompts: with equal means the interval has no width."""
    found = describe(answers(1.0, 0.0, 1.0, 0.0), DESIGN, success_score=None)
    assert found["score"]["interval"] == [0.5, 0.5]


def test_without_right_and_wrong_there_is_no_pass():
    assert not any("@" in name for name in describe(answers(1.0, 0.0), DESIGN, success_score=None))


def test_failed_and_unscored_episodes_count_nowhere():
    played = answers(1.0, 0.0, 0.0, 0.0)
    played[1] = dataclasses.replace(played[1], failure="it hung", token_ids=[], response_mask=[], score=math.nan)
    played[2].score = played[3].score = math.nan
    found = describe(played, DESIGN, success_score=1.0)
    assert (found["score"]["value"], found["score"]["prompts"]) == (1.0, 1)
    assert found["pass@2"] == {"value": None, "interval": None, "prompts": 0}
    assert (found["response_tokens"]["value"], found["response_tokens"]["prompts"]) == (3.0, 2)


def test_components_and_turns():
    found = describe(answers(1.0, 0.0, components={"length": 4.0}, responses=["a", "b"]), DESIGN, success_score=None)
    assert (found["components/length"]["value"], found["turns"]["value"]) == (4.0, 2.0)


def test_groups_are_described_one_by_one():
    played = answers(1.0, 1.0, 0.0, 0.0, 1.0, 0.0)
    found = describe_groups(played, ["b", "b", "a", "a", "b", "b"], DESIGN, success_score=1.0)
    assert list(found) == ["a", "b"]
    assert found["a"]["score"]["value"] == 0.0
    assert (found["b"]["score"]["value"], found["b"]["score"]["prompts"]) == (0.75, 2)
