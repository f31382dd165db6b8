"""The comparison of two small sets of answers, with every number worked out by hand."""

import math

import numpy as np
import pytest

from rlhf.episodes.episode import Episode
from rlhf.evaluation import compare as module
from rlhf.evaluation.compare import Answers
from rlhf.evaluation.paired import Design


def compare(before, after, samples_per_prompt):
    metrics, win_rate = module.compare(before, after, Design(samples_per_prompt, resamples=500, seed=0))
    return {"metrics": metrics, "win_rate": win_rate}


def episode(score, tokens=2, text="one two", stop="eos", **components):
    return Episode(
        prompt="p",
        token_ids=[0] * (tokens + 1),
        response_mask=[False] + [True] * tokens,
        sampled_logprobs=[0.0] * (tokens + 1),
        rewards=[0.0] * (tokens + 1),
        responses=[text],
        messages=[],
        stop_reason=stop,
        terminated=True,
        truncated=False,
        score=score,
        components=components,
    )


def answers(episodes, log_ratios=None, before_logprobs=None):
    zeros = np.zeros(len(episodes))
    return Answers(
        episodes,
        zeros if log_ratios is None else np.array(log_ratios),
        zeros - 1.0 if before_logprobs is None else np.array(before_logprobs),
    )


def test_scores_and_differences():
    before = answers([episode(1.0), episode(2.0), episode(3.0)])
    after = answers([episode(2.0), episode(2.0), episode(2.0)])
    result = compare(before, after, 1)
    score = result["metrics"]["score"]
    assert (score["before"], score["after"], score["difference"]) == (2.0, 2.0, 0.0)
    low, high = score["interval"]
    assert -1 <= low < 0 < high <= 1
    assert result["win_rate"]["value"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert 0 <= result["win_rate"]["interval"][0] < 0.5 < result["win_rate"]["interval"][1] <= 1


def test_a_constant_gain_has_an_interval_without_width():
    before = answers([episode(0.25 * i) for i in range(6)])
    after = answers([episode(0.25 * i + 0.5) for i in range(6)])
    result = compare(before, after, 1)
    assert result["metrics"]["score"]["interval"] == pytest.approx([0.5, 0.5], abs=1e-12)
    assert result["win_rate"] == {"value": 1.0, "interval": [1.0, 1.0]}


def test_samples_of_a_prompt_are_averaged_first():
    before = answers([episode(0.0), episode(2.0), episode(5.0), episode(math.nan)])
    after = answers([episode(1.0), episode(1.0), episode(9.0), episode(7.0)])
    result = compare(before, after, 2)
    assert result["metrics"]["score"]["before"] == pytest.approx((1.0 + 5.0) / 2)
    assert result["metrics"]["score"]["after"] == pytest.approx((1.0 + 8.0) / 2)
    # wins: prompt 0 has one of two, prompt 1 has the one pair that can be compared
    assert result["win_rate"]["value"] == pytest.approx((0.5 + 1.0) / 2)


def test_prompts_that_one_side_could_not_score_stay_out_of_both_numbers():
    before = answers([episode(1.0), episode(100.0)])
    after = answers([episode(2.0), episode(math.nan)])
    result = compare(before, after, 1)
    assert result["metrics"]["score"] == {"before": 1.0, "after": 2.0, "difference": 1.0, "interval": [1.0, 1.0]}
    assert result["win_rate"]["value"] == 1.0


def test_components_are_compared_by_themselves():
    before = answers([episode(0.0, polite=1.0, short=math.nan), episode(0.0, polite=0.0, short=4.0)])
    after = answers([episode(0.0, polite=1.0, short=9.0), episode(0.0, polite=1.0, short=5.0)])
    metrics = compare(before, after, 1)["metrics"]
    assert metrics["components/polite"]["difference"] == pytest.approx(0.5)
    assert metrics["components/short"]["before"] == 4.0
    assert metrics["components/short"]["after"] == 5.0


def test_nothing_scored_gives_nulls():
    nothing = answers([episode(math.nan, rule=math.nan)])
    result = compare(nothing, nothing, 1)
    empty = {"before": None, "after": None, "difference": None, "interval": None}
    assert result["metrics"]["score"] == result["metrics"]["components/rule"] == empty
    assert result["win_rate"] == {"value": None, "interval": None}


def test_kl_and_perplexity():
    before = answers([episode(0.0, tokens=2), episode(0.0, tokens=2)], before_logprobs=[-2.0, -4.0])
    after = answers([episode(0.0, tokens=1), episode(0.0, tokens=4)], [0.5, 2.5], [-3.0, -2.0])
    metrics = compare(before, after, 1)["metrics"]
    assert metrics["kl"]["before"] == 0.0
    assert metrics["kl"]["after"] == metrics["kl"]["difference"] == pytest.approx(1.5)
    assert metrics["kl"]["interval"] == pytest.approx([0.5, 2.5])
    assert metrics["kl_per_token"]["after"] == pytest.approx(3.0 / 5)
    assert metrics["perplexity"]["before"] == pytest.approx(math.exp(6 / 4))
    assert metrics["perplexity"]["after"] == pytest.approx(math.exp(5 / 5))


def test_length_stops_and_repetition():
    before = answers([episode(0.0, 3, "a b a b"), episode(0.0, 5, "c d", stop="length")])
    after = answers([episode(0.0, 7, "a b", stop="stop_string"), episode(0.0, 2, "c d")])
    metrics = compare(before, after, 1)["metrics"]
    assert (metrics["response_tokens"]["before"], metrics["response_tokens"]["after"]) == (4.0, 4.5)
    assert (metrics["stopped_share"]["before"], metrics["stopped_share"]["after"]) == (0.5, 1.0)
    assert metrics["distinct_2"] == {"before": 3 / 4, "after": 1.0, "difference": 0.25, "interval": None}


def test_equal_answers_differ_by_exactly_zero():
    rng = np.random.default_rng(0)
    same = answers(
        [episode(float(rng.normal()), tokens=int(rng.integers(1, 9)), rule=float(rng.normal())) for _ in range(37)],
        before_logprobs=rng.normal(-9, 1, size=37),
    )
    result = compare(same, same, 1)
    for name, entry in result["metrics"].items():
        assert entry["difference"] == 0.0, name
        assert entry["interval"] in ([0.0, 0.0], None), name
    assert result["win_rate"] == {"value": 0.5, "interval": [0.5, 0.5]}
