"""Where the score meets the KL penalty. One reward per response token."""

import torch
from torch import Tensor

from rlhf.config.ppo import MissingStopConfig


def penalise_unfinished(env_rewards: Tensor, mask: Tensor, stopped: Tensor, missing_stop: MissingStopConfig) -> Tensor:
    """Change the last reward of responses that reached their limit without a stop.

    Ziegler et al. (2019) replace the score, TRL subtracts from it.

    Args:
        env_rewards: (B, T), the environment's rewards and scores, placed.
        mask: (B, T), True where there is a response token; a prefix of each row.
        stopped: (B,), True where the response ended by itself.
        missing_stop: What to do with the others.

    Returns:
        (B, T).
    """
    last = torch.arange(mask.shape[1], device=mask.device) == mask.sum(1, keepdim=True) - 1  # (B, T)
    changed = last & ~stopped[:, None]
    if missing_stop.action == "replace":
        return torch.where(changed, missing_stop.value, env_rewards)
    if missing_stop.action == "subtract":
        return torch.where(changed, env_rewards - missing_stop.value, env_rewards)
    return env_rewards


def token_rewards(
    env_rewards: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, kl_coefficient: float
) -> tuple[Tensor, Tensor]:
    """Reward of each token: what the environment gave there, minus the KL penalty.

    r_t = e_t - b (log pi(a_t|s_t) - log pi_ref(a_t|s_t)), the k1 estimator, whose expectation over the policy's own
    tokens is the KL divergence (Ziegler et al., 2019, eq. 2). A score that comes once is on the last token of its turn.

    Args:
        env_rewards: (B, T), the environment's rewards and scores, placed.
        logprobs: (B, T), the policy's, at sampling time, in nats.
        ref_logprobs: (B, T), the reference policy's.
        mask: (B, T), True where there is a response token.
        kl_coefficient: b.

    Returns:
        Rewards (B, T) and the per-token KL estimates (B, T); 0 under the mask.
    """
    kl = torch.where(mask, logprobs - ref_logprobs, 0.0)
    return torch.where(mask, env_rewards, 0.0) - kl_coefficient * kl, kl
