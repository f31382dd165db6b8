"""The clipped losses of PPO, token by token. The caller sums them and divides by the tokens of the whole minibatch.

All tensors are flat, (n,): the response tokens of one microbatch and nothing else, so there is no mask to forget.
"""

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0  # exp(20) is finite in every precision; beyond it a ratio carries no information


def importance_ratio(new_logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """pi_new(a|s) / pi_old(a|s), with the log-ratio clamped to +-20."""
    return (new_logprobs - old_logprobs).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT).exp()


def policy_loss(ratio: Tensor, advantages: Tensor, clip_range: float) -> tuple[Tensor, Tensor]:
    """Clipped surrogate, negated (Schulman et al., 2017, eq. 7): max(-A r, -A clip(r, 1 - e, 1 + e)).

    Returns:
        Losses (n,) and whether each token was clipped (n,).
    """
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(unclipped, clipped), clipped > unclipped


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> tuple[Tensor, Tensor]:
    """Half the larger of the clipped and the unclipped squared error (Ziegler et al., 2019).

    Returns:
        Losses (n,) and whether each token was clipped (n,).
    """
    near_old = old_values + (values - old_values).clamp(-clip_range, clip_range)
    unclipped, clipped = (values - returns) ** 2, (near_old - returns) ** 2
    return 0.5 * torch.maximum(unclipped, clipped), clipped > unclipped


def approximate_kl(new_logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """Half the squared log-ratio (n,): the k2 estimator of KL(old || new), for watching how far an update went."""
    return 0.5 * (new_logprobs - old_logprobs) ** 2
