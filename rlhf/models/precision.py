"""Storing what is not trained in the precision that it is computed with.

Trained weights, their gradients and the optimizer stay float32: trainers run them under the runtime's autocast.
"""

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


def round_frozen_matrices(model: Any) -> None:
    """Store a trunk's matrices that are not trained in bfloat16, which spares autocast a cast in every pass.

    They need no float32 master, and the rounding is that of autocast, so no result changes. Embeddings, norms, and
    what stands behind the trunk (the output layer, a reward model's head) keep their precision.

    Args:
        model: A transformers model, with adapters or without; changed in place. TRL's trainer also takes reward models
            whose trunk is a function: that has no matrices to store.
    """
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    trunk = getattr(base, base.base_model_prefix)
    for module in trunk.modules() if isinstance(trunk, nn.Module) else ():
        if isinstance(module, (nn.Linear, Conv1D)) and not module.weight.requires_grad:
            module.weight.data = module.weight.data.to(torch.bfloat16)
    for parameter in base.parameters():
        if not parameter.requires_grad and parameter.dtype != torch.bfloat16:
            # A checkpoint that was mapped into memory stays there, whole, as long as one tensor is a part of it.
            parameter.data = parameter.data.clone()
