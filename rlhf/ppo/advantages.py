"""Advantage estimators, by name. Each is one pure function of the rewards; adding one takes a function and `register`.

Notation: B episodes, T the most response tokens of an episode. The T axis holds response tokens only: what the
environment said in between is left out, so the recursion steps from one token of the policy to its next.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AdvantageInputs:
    """What an estimator may look at."""

    rewards: Tensor  # (B, T)
    mask: Tensor  # (B, T), True where there is a response token; a prefix of each row
    values: Tensor  # (B, T), the critic's V(s_t); zeros where an estimator has no critic
    final_values: Tensor  # (B,), V after the last token: 0 unless the episode was truncated and is bootstrapped
    groups: Tensor  # (B,), episodes of the same prompt share a number
    gamma: float
    gae_lambda: float


Estimator = Callable[[AdvantageInputs], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class AdvantageEstimator:
    """An estimator, whether it reads the critic's values, and whether it needs all samples of a prompt."""

    estimate: Estimator
    uses_critic: bool
    compares_samples: bool


ESTIMATORS: dict[str, AdvantageEstimator] = {}


def register(name: str, *, uses_critic: bool, compares_samples: bool = False) -> Callable[[Estimator], Estimator]:
    """Make an estimator known by name. It returns advantages and returns, both (B, T), 0 under the mask."""

    def add(function: Estimator) -> Estimator:
        ESTIMATORS[name] = AdvantageEstimator(function, uses_critic, compares_samples)
        return function

    return add


@register("gae", uses_critic=True)
def gae(inputs: AdvantageInputs) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al., 2016, eq. 16); returns are advantages + values."""
    rewards = torch.where(inputs.mask, inputs.rewards, 0.0)
    values = torch.where(inputs.mask, inputs.values, 0.0)
    advantages = torch.zeros_like(rewards)
    last = _last_token(inputs.mask)
    advantage = torch.zeros_like(inputs.final_values)
    for t in reversed(range(rewards.shape[1])):
        following = values[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros_like(inputs.final_values)
        following = torch.where(last == t, inputs.final_values, following)
        # delta_t = r_t + gamma V(s_{t+1}) - V(s_t)
        delta = rewards[:, t] + inputs.gamma * following - values[:, t]
        # A_t = delta_t + gamma lambda A_{t+1}; behind the last token there is nothing.
        advantage = torch.where(inputs.mask[:, t], delta + inputs.gamma * inputs.gae_lambda * advantage, 0.0)
        advantages[:, t] = advantage
    return advantages, advantages + values


@register("rloo", uses_critic=False, compares_samples=True)
def rloo(inputs: AdvantageInputs) -> tuple[Tensor, Tensor]:
    """Leave-one-out baseline (Ahmadian et al., 2024, eq. 8): the other samples' mean return of the same prompt."""
    totals, siblings, sums, _ = _group_statistics(inputs)
    advantage = totals - (sums - totals) / (siblings - 1)
    return _spread(advantage, inputs), _spread(totals, inputs)


@register("group", uses_critic=False, compares_samples=True)
def group(inputs: AdvantageInputs) -> tuple[Tensor, Tensor]:
    """Group-relative advantage of GRPO (Shao et al., 2024, section 4.1.2): (R - mean) / (std + 1e-4) over a prompt."""
    totals, siblings, sums, squares = _group_statistics(inputs)
    mean = sums / siblings
    std = ((squares - siblings * mean**2).clamp(min=0) / (siblings - 1)).sqrt()
    return _spread((totals - mean) / (std + 1e-4), inputs), _spread(totals, inputs)


@register("reinforce", uses_critic=False)
def reinforce(inputs: AdvantageInputs) -> tuple[Tensor, Tensor]:
    """Reward to go minus the mean return of the rollout (Williams, 1992, with a global baseline)."""
    rewards = torch.where(inputs.mask, inputs.rewards, 0.0)
    to_go = torch.zeros_like(rewards)
    running = torch.zeros_like(inputs.final_values)
    for t in reversed(range(rewards.shape[1])):
        running = rewards[:, t] + inputs.gamma * running
        to_go[:, t] = running
    baseline = rewards.sum(1).mean()
    return torch.where(inputs.mask, to_go - baseline, 0.0), torch.where(inputs.mask, to_go, 0.0)


def _last_token(mask: Tensor) -> Tensor:
    """Index (B,) of each row's last True; -1 where there is none."""
    return mask.sum(1) - 1


def _spread(per_episode: Tensor, inputs: AdvantageInputs) -> Tensor:
    """Give every response token its episode's number."""
    return torch.where(inputs.mask, per_episode[:, None], 0.0)


def _group_statistics(inputs: AdvantageInputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each episode's undiscounted return R, and its group's size, sum of R and sum of R squared; all (B,)."""
    totals = torch.where(inputs.mask, inputs.rewards, 0.0).sum(1)
    numbers, size = torch.unique(inputs.groups, return_inverse=True)[1], torch.unique(inputs.groups).numel()
    zeros = totals.new_zeros(size)
    siblings = zeros.index_add(0, numbers, torch.ones_like(totals))
    if (siblings < 2).any():
        raise ValueError("this estimator compares samples of one prompt: it needs 2 or more of each")
    sums, squares = zeros.index_add(0, numbers, totals), zeros.index_add(0, numbers, totals**2)
    return totals, siblings[numbers], sums[numbers], squares[numbers]
