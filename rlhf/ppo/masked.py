"""Statistics over the True positions of a mask. What lies under the mask, NaN included, cannot reach the result."""

import torch
from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the positions where mask is True.

    Raises:
        ValueError: No position is True.
    """
    count = mask.sum()
    if count == 0:
        raise ValueError("the mask is empty: there is nothing to average")
    return torch.where(mask, values, 0.0).sum() / count


def masked_whiten(values: Tensor, mask: Tensor, *, shift_mean: bool) -> Tensor:
    """Scale to variance 1 (biased) over the mask, and to mean 0 if `shift_mean`; 0 under the mask.

    Ziegler et al. (2019), `whiten` of lm-human-preferences. Rewards keep their mean, advantages lose it. Constant
    values stay finite.

    Args:
        values: (B, T).
        mask: (B, T), True where a value counts. Holds the whole rollout, so that all processes agree.
        shift_mean: Whether the result has mean 0 rather than the mean of `values`.
    """
    mean = masked_mean(values, mask)
    centred = torch.where(mask, values - mean, 0.0)
    whitened = centred * torch.rsqrt(masked_mean(centred**2, mask) + 1e-8)
    return torch.where(mask, whitened if shift_mean else whitened + mean, 0.0)
