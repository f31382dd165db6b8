"""From a rollout to what the update needs: log-probabilities, values, token rewards, advantages.

The first half runs the models over this process's share of the rows; the second is arithmetic on the whole batch,
the same on every process.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf.episodes.episode import Episode
from rlhf.policies.actor_critic import TokenOutputs
from rlhf.ppo.advantages import ESTIMATORS, AdvantageInputs
from rlhf.ppo.batch import Batch, Microbatch, microbatches
from rlhf.ppo.masked import masked_whiten
from rlhf.ppo.token_rewards import penalise_missing_stop, token_rewards

WITHOUT_GRADIENTS = 4  # microbatches that are run at once where nothing is kept for a backward pass

Evaluate = Callable[[Microbatch], TokenOutputs]


@torch.no_grad()
def evaluate_models(batch: Batch, policy: Evaluate, reference: Evaluate, accelerator: Accelerator, budget: int) -> None:
    """Fill in log-probabilities, reference log-probabilities and values.

    Args:
        batch: The rollout; changed in place.
        policy: Runs policy and critic on a microbatch.
        reference: Runs the reference policy.
        accelerator: Says which share of the rows is this process's.
        budget: Tokens of one microbatch of the update.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    for microbatch in microbatches(batch, range(len(batch)), WITHOUT_GRADIENTS * budget, rank, world):
        own, frozen = policy(microbatch), reference(microbatch)
        if microbatch.counts:
            mask = batch.mask[microbatch.rows]
            for target, values in (
                (batch.logprobs, own.logprobs),
                (batch.values, own.values),
                (batch.ref_logprobs, frozen.logprobs),
            ):
                target[microbatch.rows] = torch.zeros_like(target[microbatch.rows]).masked_scatter(mask, values)
            batch.final_values[microbatch.rows] = own.final_values
    # Every row was filled in by one process and is zero on the others.
    for name in ("logprobs", "values", "ref_logprobs", "final_values"):
        setattr(batch, name, _sum_over_processes(getattr(batch, name), accelerator))


def whole_groups(episodes: Sequence[Episode], size: int) -> list[Episode]:
    """Return the episodes of prompts of which every sample was scored; group estimators need whole groups."""
    counts = Counter(episode.index for episode in episodes)
    return [episode for episode in episodes if counts[episode.index] % size == 0]


def penalise_unfinished(batch: Batch, action: str, value: float) -> None:
    """Change the last reward of responses that reached their limit without a stop; see `penalise_missing_stop`."""
    rows, last = torch.arange(len(batch), device=batch.mask.device), batch.mask.sum(1) - 1
    batch.env_rewards[rows, last] = penalise_missing_stop(batch.env_rewards[rows, last], batch.stopped, action, value)


def estimate_advantages(
    batch: Batch,
    *,
    estimator: str,
    kl_coefficient: float,
    gamma: float,
    gae_lambda: float,
    whiten_rewards: bool,
    whiten_advantages: bool,
    bootstrap_truncated: bool,
) -> None:
    """Fill in KL, token rewards, advantages and returns. See the functions called here for formulas and sources."""
    batch.rewards, batch.kl = token_rewards(
        batch.env_rewards, batch.logprobs, batch.ref_logprobs, batch.mask, kl_coefficient
    )
    if whiten_rewards:
        batch.rewards = masked_whiten(batch.rewards, batch.mask, shift_mean=False)
    # A terminated episode has no future; a truncated one has, if the critic is asked for it.
    bootstrapped = batch.truncated if bootstrap_truncated else torch.zeros_like(batch.truncated)
    batch.advantages, batch.returns = ESTIMATORS[estimator].estimate(
        AdvantageInputs(
            rewards=batch.rewards,
            mask=batch.mask,
            values=batch.values,
            final_values=torch.where(bootstrapped, batch.final_values, 0.0),
            groups=batch.groups,
            gamma=gamma,
            gae_lambda=gae_lambda,
        )
    )
    if whiten_advantages:
        batch.advantages = masked_whiten(batch.advantages, batch.mask, shift_mean=True)


def _sum_over_processes(values: Tensor, accelerator: Accelerator) -> Tensor:
    if accelerator.num_processes == 1:
        return values
    total: Tensor = accelerator.reduce(values, reduction="sum")
    return total
