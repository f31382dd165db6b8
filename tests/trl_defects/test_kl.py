"""The KL penalty: k3 in the reward has a wrong fixed point. A bandit of three arms, where everything is exact.

Reference (.5, .3, .2), rewards (0, 1, 2), coefficient 1. J(pi) = E[r] - KL(pi || ref) is largest at
pi* = ref exp(r) / Z, where it is ln Z, and there the reward with a k1 penalty is the same for every arm.
"""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ppo_helpers import exact, tiny
from torch import Tensor
from trl_defects.stock import A, B, C, FixedReward, in_trl, script, stock_trainer, zero_critic
from trl_helpers import ppo_config

ARMS = [A, B, C]
REFERENCE = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REWARD = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
BEST = REFERENCE * REWARD.exp() / (REFERENCE * REWARD.exp()).sum()


class ArmReward(FixedReward):
    """0, 1 or 2, by the arm that was drawn."""

    def read(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(hidden_states=[input_ids[..., None].double() - A])


def bandit(probabilities: Tensor) -> Any:
    """A Llama that draws the three arms with these probabilities, whatever it is asked."""
    policy = exact(tiny())
    with torch.no_grad():
        policy.model.embed_tokens.weight[:] = policy.model.embed_tokens.weight[A].clone()
        hidden = policy.model(torch.tensor([[A]])).last_hidden_state[0, 0]
        logits = torch.full((8,), -60.0, dtype=torch.float64)
        logits[ARMS] = probabilities.log()
        policy.lm_head.weight[:] = torch.outer(logits, hidden / hidden.square().sum())
    return policy


def penalty(estimator: str, policy: Tensor) -> Tensor:
    """Per arm, as in TRL's `train`."""
    log_ratio = REFERENCE.log() - policy.log()
    return -log_ratio if estimator == "k1" else log_ratio.exp() - 1 - log_ratio


def rewards_in_trl(folder: Any, monkeypatch: pytest.MonkeyPatch, estimator: str) -> Tensor:
    """What TRL's trainer makes of one draw of each arm, at the optimum."""
    script(monkeypatch, {arm: [arm] for arm in ARMS}, 1)
    trainer = stock_trainer(
        folder, bandit(BEST), ref_model=bandit(REFERENCE), reward_model=ArmReward(), value_model=exact(zero_critic()),
        rows=[[arm] for arm in ARMS], per_device_train_batch_size=3, total_episodes=3, response_length=1, kl_coef=1.0,
        kl_estimator=estimator,
    )  # fmt: skip
    trainer.train()
    (kept,) = trainer.spy.iterations
    return kept["rewards"][kept["responses"][:, 0].argsort(), 0]


def ascend(estimator: str) -> tuple[Tensor, float]:
    """Follow the exact policy gradient sum_a pi_a R_a (e_a - pi) from the reference; return the policy and J."""
    logits = REFERENCE.log()
    for _ in range(1000):
        policy = logits.softmax(0)
        rewards = REWARD - penalty(estimator, policy)
        logits = logits + 0.1 * policy * (rewards - policy @ rewards)
    policy = logits.softmax(0)
    return policy, float(policy @ (REWARD - (policy / REFERENCE).log()))


@in_trl
def test_k3_in_the_reward_moves_away_from_the_optimum_in_trl(tmp_path, monkeypatch):
    k1 = rewards_in_trl(tmp_path, monkeypatch, "k1")
    torch.testing.assert_close(k1, torch.full_like(k1, math.log(2.7932964)), atol=1e-5, rtol=0)  # no gradient: it stays
    k3 = rewards_in_trl(tmp_path, monkeypatch, "k3")
    torch.testing.assert_close(k3, REWARD - penalty("k3", BEST), atol=1e-5, rtol=0)
    assert k3.max() - k3.min() > 2


@in_trl
def test_k3_in_the_reward_ends_on_one_arm_with_the_formula_of_trl():
    policy, best = ascend("k1")
    torch.testing.assert_close(policy, BEST, atol=1e-4, rtol=0)
    assert best == pytest.approx(1.027222, abs=1e-4)
    policy, reached = ascend("k3")
    assert policy[2] > 0.999
    assert reached == pytest.approx(2 - math.log(5), abs=1e-6)
    assert reached < REFERENCE @ REWARD  # .391 where it began at .7


def test_k3_in_the_reward_is_refused_here(tmp_path):
    with pytest.raises(
        ValueError, match="kl_estimator is 'k3'; only k1 is allowed: k3 in the reward has a wrong fixed"
    ):
        ppo_config(tmp_path, kl_estimator="k3")
