"""A rollout on its way to the update: played, then scored, then with advantages. Each step returns a new object.

    Rollout  ->  ScoredRollout  ->  AdvantagedRollout

Notation: B episodes, T response tokens of the episode with the most. Per-token quantities are (B, T): response tokens
only, in order, several turns one behind the other, padded on the right. Every process holds the whole rollout; each
runs its own share of the rows through the models.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.episodes.episode import Episode
from rlhf.packing.microbatch import ResponseRows, lay_out


@dataclass(frozen=True)
class Rollout(ResponseRows):
    """What was played."""

    sampled_logprobs: Tensor  # (B, T) the sampler's
    env_rewards: Tensor  # (B, T) the environment's rewards and scores, each on the last token of its turn
    stopped: Tensor  # (B,) True where the last response ended by itself
    truncated: Tensor  # (B,) True where the episode was cut off rather than ended
    groups: Tensor  # (B,) episodes of the same prompt share a number


@dataclass(frozen=True)
class ScoredRollout(Rollout):
    """And what the models say of it, before the update."""

    logprobs: Tensor  # (B, T) the policy's
    ref_logprobs: Tensor  # (B, T) the reference policy's
    values: Tensor  # (B, T) the critic's V(s_t)
    final_values: Tensor  # (B,) V of the state behind the last token
    kl: Tensor  # (B, T) logprobs - ref_logprobs
    rewards: Tensor  # (B, T) what is maximised: env_rewards minus the KL penalty


@dataclass(frozen=True)
class AdvantagedRollout(ScoredRollout):
    """And what the update learns from."""

    advantages: Tensor  # (B, T)
    returns: Tensor  # (B, T) what the critic should have said


def collate(episodes: Sequence[Episode], dtype: torch.dtype, device: torch.device) -> Rollout:
    """Lay episodes out in tensors; per-token numbers are in `dtype`."""
    rows = lay_out([e.token_ids for e in episodes], [e.response_mask for e in episodes], device)

    def of_responses(values: Sequence[Sequence[float]]) -> Tensor:
        laid_out = torch.zeros(rows.mask.shape, dtype=torch.float64)
        for row, (own, numbers) in enumerate(zip((e.response_mask for e in episodes), values, strict=True)):
            chosen = torch.tensor(numbers, dtype=torch.float64)[torch.tensor(own, dtype=torch.bool)]
            laid_out[row, : len(chosen)] = chosen
        return laid_out.to(device, dtype)

    return Rollout(
        **vars(rows),
        sampled_logprobs=of_responses([e.sampled_logprobs for e in episodes]),
        env_rewards=of_responses([e.rewards for e in episodes]),
        stopped=torch.tensor([e.stop_reason != "length" for e in episodes], device=device),
        truncated=torch.tensor([e.truncated for e in episodes], device=device),
        groups=torch.tensor([e.index for e in episodes], device=device),
    )
