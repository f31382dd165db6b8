"""One optimizer step with gradients of limited norm (Pascanu et al., 2013, algorithm 1)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def clipped_step(optimizer: Any, trained: Sequence[nn.Parameter], norm: Tensor, limit: float | None) -> None:
    """Scale the gradients down to `limit`, if their norm is larger, and step.

    A fused optimizer divides the gradients by the factor, and writes them, while it reads them for the step; a pass of
    its own over all of them would take as long as half of the step.

    Args:
        optimizer: Of torch, or Accelerate's around it.
        trained: The parameters that have gradients.
        norm: Of all gradients together.
        limit: None for no limit.
    """
    if limit is None or norm <= limit:
        optimizer.step()
        return
    inner = getattr(optimizer, "optimizer", optimizer)
    if not _divides(inner) or norm.dtype != torch.float32:
        torch.nn.utils.clip_grads_with_norm_(trained, limit, norm)
        optimizer.step()
        return
    inner.grad_scale = norm / limit  # as torch's GradScaler hands over its own
    try:
        optimizer.step()
    finally:
        del inner.grad_scale


def _divides(optimizer: Any) -> bool:
    """Whether an optimizer divides gradients by its `grad_scale`: fused ones tell GradScaler so."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))
