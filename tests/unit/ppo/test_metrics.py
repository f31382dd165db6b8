"""The numbers of an iteration against plain sums over its episodes."""

import dataclasses
import math

import pytest
import torch
from ppo_helpers import filled as filled_with
from ppo_helpers import random_episodes

from rlhf.ppo.batch import collate
from rlhf.ppo.metrics import explained_variance, rollout_metrics

PER_TOKEN = ("logprobs", "ref_logprobs", "values", "advantages", "rewards", "returns", "kl")


def filled(episodes, seed=0):
    """A batch with a different number in every per-token field, and garbage under the mask."""
    batch = collate(episodes, torch.float64, torch.device("cpu"))
    generator = torch.Generator().manual_seed(seed)
    numbers = {name: torch.randn(batch.mask.shape, generator=generator, dtype=torch.float64) for name in PER_TOKEN}
    numbers["logprobs"] = -numbers["logprobs"].abs()
    numbers = {name: torch.where(batch.mask, number, 0.0) for name, number in numbers.items()}
    return filled_with(batch, **numbers)


def test_kl_entropy_and_reward_are_sums_over_an_episodes_tokens():
    episodes = random_episodes(5)
    batch = filled(episodes)
    lengths = batch.mask.sum(1).tolist()
    assert len(set(lengths)) > 2

    def per_episode(values):
        return sum(float(values[row, t]) for row, length in enumerate(lengths) for t in range(length)) / 5

    metrics = rollout_metrics(episodes, batch)
    assert metrics["kl"] == pytest.approx(per_episode(batch.kl), abs=1e-12)
    assert metrics["reward"] == pytest.approx(per_episode(batch.rewards), abs=1e-12)
    assert metrics["entropy"] == pytest.approx(per_episode(-batch.logprobs), abs=1e-12)
    assert metrics["entropy"] > 0
    assert metrics["response_tokens"] == sum(lengths) / 5


def test_a_sampled_entropy_estimates_the_entropy():
    """Every action once, weighted as often as the policy takes it: -E[log pi] = H(pi)."""
    counts = [5, 3, 2]
    episodes = random_episodes(10, longest=1)
    batch = filled(episodes)
    logprobs = torch.tensor([math.log(count / 10) for count in counts for _ in range(count)], dtype=torch.float64)
    batch = dataclasses.replace(batch, logprobs=logprobs[:, None])
    entropy = -sum(count / 10 * math.log(count / 10) for count in counts)
    assert rollout_metrics(episodes, batch)["entropy"] == pytest.approx(entropy, abs=1e-12)


@pytest.mark.parametrize(("share", "expected"), [(1.0, 1.0), (0.0, 0.0), (0.5, 0.75), (-1.0, -3.0)])
def test_explained_variance(share, expected):
    """Values that are a share s of the returns, plus a constant, leave (1 - s)^2 of the variance unexplained."""
    batch = filled(random_episodes(6))
    values = torch.where(batch.mask, share * batch.returns + 7.0, math.nan)
    assert explained_variance(dataclasses.replace(batch, values=values)) == pytest.approx(expected, abs=1e-12)


def test_returns_that_do_not_vary_have_nothing_to_explain():
    batch = filled(random_episodes(6))
    assert explained_variance(dataclasses.replace(batch, returns=torch.full_like(batch.returns, 2.0))) == 0.0


def test_an_unscored_episode_is_not_in_the_mean_score():
    episodes = random_episodes(4)
    episodes[1].score = math.nan
    scores = [episodes[number].score for number in (0, 2, 3)]
    metrics = rollout_metrics(episodes, filled([episodes[number] for number in (0, 2, 3)]))
    mean = sum(scores) / 3
    assert metrics["score"] == pytest.approx(mean, abs=1e-12)
    assert metrics["score_std"] == pytest.approx(math.sqrt(sum((s - mean) ** 2 for s in scores) / 3), abs=1e-12)
    assert metrics["unscored_episodes"] == 1
