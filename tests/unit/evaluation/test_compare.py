"""The comparison of two small sets of answers, with every number worked out by hand."""

import math

import numpy as np
import pytest

from rlhf.episodes.episode import Episode
from rlhf.evaluation import compare as module
from rlhf.evaluation.compare import Answers
from rlhf.evaluation.paired import Design


def compare(sft, ppo, samples_per_prompt):
    metrics, win_rate = module.compare(sft, ppo, Design(samples_per_prompt, resamples=500, seed=0))
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


def answers(episodes, log_ratios=None, sft_logprobs=None):
    zeros = np.zeros(len(episodes))
    return Answers(
        episodes,
        zeros if log_ratios is None else np.array(log_ratios),
        zeros - 1.0 if sft_logprobs is None else np.array(sft_logprobs),
    )


def test_scores_and_differences():
    sft = answers([episode(1.0), episode(2.0), episode(3.0)])
    ppo = answers([episode(2.0), episode(2.0), episode(2.0)])
    result = compare(sft, ppo, 1)
    score = result["metrics"]["score"]
    assert (score["sft"], score["ppo"], score["difference"]) == (2.0, 2.0, 0.0)
    low, high = score["interval"]
    assert -1 <= low < 0 < high <= 1
    assert result["win_rate"]["value"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert 0 <= result["win_rate"]["interval"][0] < 0.5 < result["win_rate"]["interval"][1] <= 1


def test_a_constant_gain_has_an_interval_without_width():
    sft = answers([episode(0.25 * i) for i in range(6)])
    ppo = answers([episode(0.25 * i + 0.5) for i in range(6)])
    result = compare(sft, ppo, 1)
    assert result["metrics"]["score"]["interval"] == pytest.approx([0.5, 0.5], abs=1e-12)
    assert result["win_rate"] == {"value": 1.0, "interval": [1.0, 1.0]}


def test_samples_of_a_prompt_are_averaged_first():
    sft = answers([episode(0.0), episode(2.0), episode(5.0), episode(math.nan)])
    ppo = answers([episode(1.0), episode(1.0), episode(9.0), episode(7.0)])
    result = compare(sft, ppo, 2)
    assert result["metrics"]["score"]["sft"] == pytest.approx((1.0 + 5.0) / 2)
    assert result["metrics"]["score"]["ppo"] == pytest.approx((1.0 + 8.0) / 2)
    # wins: prompt 0 has one of two, prompt 1 has the one pair that can be compared
    assert result["win_rate"]["value"] == pytest.approx((0.5 + 1.0) / 2)


def test_prompts_that_one_side_could_not_score_stay_out_of_both_numbers():
    sft = answers([episode(1.0), episode(100.0)])
    ppo = answers([episode(2.0), episode(math.nan)])
    result = compare(sft, ppo, 1)
    assert result["metrics"]["score"] == {"sft": 1.0, "ppo": 2.0, "difference": 1.0, "interval": [1.0, 1.0]}
    assert result["win_rate"]["value"] == 1.0


def test_components_are_compared_by_themselves():
    sft = answers([episode(0.0, polite=1.0, short=math.nan), episode(0.0, polite=0.0, short=4.0)])
    ppo = answers([episode(0.0, polite=1.0, short=9.0), episode(0.0, polite=1.0, short=5.0)])
    metrics = compare(sft, ppo, 1)["metrics"]
    assert metrics["components/polite"]["difference"] == pytest.approx(0.5)
    assert metrics["components/short"]["sft"] == 4.0
    assert metrics["components/short"]["ppo"] == 5.0


def test_nothing_scored_gives_nulls():
    nothing = answers([episode(math.nan, rule=math.nan)])
    result = compare(nothing, nothing, 1)
    empty = {"sft": None, "ppo": None, "difference": None, "interval": None}
    assert result["metrics"]["score"] == result["metrics"]["components/rule"] == empty
    assert result["win_rate"] == {"value": None, "interval": None}


def test_kl_and_perplexity():
    sft = answers([episode(0.0, tokens=2), episode(0.0, tokens=2)], sft_logprobs=[-2.0, -4.0])
    ppo = answers([episode(0.0, tokens=1), episode(0.0, tokens=4)], [0.5, 2.5], [-3.0, -2.0])
    metrics = compare(sft, ppo, 1)["metrics"]
    assert metrics["kl"]["sft"] == 0.0
    assert metrics["kl"]["ppo"] == metrics["kl"]["difference"] == pytest.approx(1.5)
    assert metrics["kl"]["interval"] == pytest.approx([0.5, 2.5])
    assert metrics["kl_per_token"]["ppo"] == pytest.approx(3.0 / 5)
    assert metrics["perplexity"]["sft"] == pytest.approx(math.exp(6 / 4))
    assert metrics["perplexity"]["ppo"] == pytest.approx(math.exp(5 / 5))


def test_length_stops_and_repetition():
    sft = answers([episode(0.0, 3, "a b a b"), episode(0.0, 5, "c d", stop="length")])
    ppo = answers([episode(0.0, 7, "a b", stop="stop_string"), episode(0.0, 2, "c d")])
    metrics = compare(sft, ppo, 1)["metrics"]
    assert (metrics["response_tokens"]["sft"], metrics["response_tokens"]["ppo"]) == (4.0, 4.5)
    assert (metrics["stopped_share"]["sft"], metrics["stopped_share"]["ppo"]) == (0.5, 1.0)
    assert metrics["distinct_2"] == {"sft": 3 / 4, "ppo": 1.0, "difference": 0.25, "interval": None}


def test_equal_answers_differ_by_exactly_zero():
    rng = np.random.default_rng(0)
    same = answers(
        [episode(float(rng.normal()), tokens=int(rng.integers(1, 9)), rule=float(rng.normal())) for _ in range(37)],
        sft_logprobs=rng.normal(-9, 1, size=37),
    )
    result = compare(same, same, 1)
    for name, entry in result["metrics"].items():
        assert entry["difference"] == 0.0, name
        assert entry["interval"] in ([0.0, 0.0], None), name
    assert result["win_rate"] == {"value": 0.5, "interval": [0.5, 0.5]}
