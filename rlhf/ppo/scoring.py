"""From a rollout to what the update needs: log-probabilities, values, token rewards, advantages.

The first half runs the models over this process's share of the rows; the second is arithmetic on the whole rollout,
the same on every process.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf.config.ppo import PPOSectionConfig
from rlhf.episodes.episode import Episode
from rlhf.packing.microbatch import Microbatch, microbatches
from rlhf.policies.actor_critic import TokenOutputs
from rlhf.ppo.advantages import ESTIMATORS, AdvantageInputs
from rlhf.ppo.batch import AdvantagedRollout, Rollout, ScoredRollout
from rlhf.ppo.masked import masked_whiten
from rlhf.ppo.token_rewards import penalise_unfinished, token_rewards

WITHOUT_GRADIENTS = 4  # microbatches that are run at once where nothing is kept for a backward pass

Evaluate = Callable[[Microbatch], TokenOutputs]


def score(
    rollout: Rollout,
    policy: Evaluate,
    reference: Evaluate,
    settings: PPOSectionConfig,
    *,
    kl_coefficient: float,
    accelerator: Accelerator,
) -> ScoredRollout:
    """Ask the models, and make one reward for each token.

    Args:
        rollout: What was played.
        policy: Runs policy and critic on a microbatch.
        reference: Runs the reference policy.
        settings: Section `ppo`.
        kl_coefficient: Of this iteration.
        accelerator: Says which share of the rows is this process's.
    """
    logprobs, values, ref_logprobs, final_values = _ask(rollout, policy, reference, settings, accelerator)
    env_rewards = penalise_unfinished(rollout.env_rewards, rollout.mask, rollout.stopped, settings.missing_stop)
    # Here the score meets the KL penalty: r_t = e_t - b (log pi(a_t|s_t) - log pi_ref(a_t|s_t))
    rewards, kl = token_rewards(env_rewards, logprobs, ref_logprobs, rollout.mask, kl_coefficient)
    return ScoredRollout(
        **{**vars(rollout), "env_rewards": env_rewards},
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        values=values,
        final_values=final_values,
        kl=kl,
        rewards=rewards,
    )


def estimate_advantages(scored: ScoredRollout, settings: PPOSectionConfig) -> AdvantagedRollout:
    """Whiten, and estimate advantages and returns. See the functions called here for formulas and sources."""
    rewards = scored.rewards
    if settings.whiten_rewards:
        rewards = masked_whiten(rewards, scored.mask, shift_mean=False)
    # A terminated episode has no future; a truncated one has, if the critic is asked for it.
    bootstrapped = scored.truncated if settings.bootstrap_truncated else torch.zeros_like(scored.truncated)
    advantages, returns = ESTIMATORS[settings.advantage].estimate(
        AdvantageInputs(
            rewards=rewards,
            mask=scored.mask,
            values=scored.values,
            final_values=torch.where(bootstrapped, scored.final_values, 0.0),
            groups=scored.groups,
            gamma=settings.gamma,
            gae_lambda=settings.gae_lambda,
        )
    )
    if settings.whiten_advantages:
        advantages = masked_whiten(advantages, scored.mask, shift_mean=True)
    return AdvantagedRollout(**{**vars(scored), "rewards": rewards}, advantages=advantages, returns=returns)


def trainable(episodes: Sequence[Episode], settings: PPOSectionConfig) -> list[Episode]:
    """Return the episodes that an update learns from: those with a score, in whole groups if compared."""
    known = [episode for episode in episodes if math.isfinite(episode.score)]
    if ESTIMATORS[settings.advantage].compares_samples:
        known = whole_groups(known, settings.samples_per_prompt)
    return known


def whole_groups(episodes: Sequence[Episode], size: int) -> list[Episode]:
    """Return the episodes of prompts of which every sample was scored; group estimators need whole groups."""
    counts = Counter(episode.index for episode in episodes)
    return [episode for episode in episodes if counts[episode.index] % size == 0]


@torch.no_grad()
def _ask(
    rollout: Rollout, policy: Evaluate, reference: Evaluate, settings: PPOSectionConfig, accelerator: Accelerator
) -> tuple[Tensor, ...]:
    """Log-probabilities, values and reference log-probabilities (B, T), and final values (B,)."""
    zeros = torch.zeros_like(rollout.sampled_logprobs)
    logprobs, values, ref_logprobs, final_values = zeros, zeros.clone(), zeros.clone(), zeros.new_zeros(len(rollout))
    rank, world = accelerator.process_index, accelerator.num_processes
    budget = WITHOUT_GRADIENTS * settings.microbatch_tokens
    for microbatch in microbatches(rollout, range(len(rollout)), budget, rank, world):
        own, frozen = policy(microbatch), reference(microbatch)
        if not microbatch.counts:
            continue
        mask, rows = rollout.mask[microbatch.rows], microbatch.rows
        for target, found in ((logprobs, own.logprobs), (values, own.values), (ref_logprobs, frozen.logprobs)):
            target[rows] = torch.zeros_like(target[rows]).masked_scatter(mask, found.to(target.dtype))
        final_values[rows] = own.final_values.to(final_values.dtype)
    # Every row was filled in by one process and is zero on the others.
    return tuple(_sum_over_processes(each, accelerator) for each in (logprobs, values, ref_logprobs, final_values))


def _sum_over_processes(values: Tensor, accelerator: Accelerator) -> Tensor:
    if accelerator.num_processes == 1:
        return values
    total: Tensor = accelerator.reduce(values, reduction="sum")
    return total
