"""Where models compute in bfloat16, and what that changes in them.

Trained weights, their gradients and the optimizer stay float32: trainers run them under autocast.
"""

import logging
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from rlhf.config.model import ModelConfig
from rlhf.launch.runtime import processor_capabilities

logger = logging.getLogger(__name__)


@cache
def multiplies_bfloat16() -> bool:
    """Whether this machine has instructions for bfloat16 products: those of a GPU, AMX, AVX-512 BF16, or Arm's."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    known = processor_capabilities()
    return any(known.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"))


@cache
def warn_of_slow_bfloat16() -> None:
    """Say once that bfloat16 was asked for where nothing multiplies it."""
    if not multiplies_bfloat16():
        logger.warning(
            "this processor does not multiply bfloat16: its products take 10 to 100 times as long as those of float32. "
            "In a config, dtype: auto takes bfloat16 only where it is fast; in PPOConfig, leave bf16 out"
        )


def uses_bfloat16(config: ModelConfig) -> bool:
    """Whether a model computes in bfloat16 on this machine, and not in float32."""
    if config.dtype == "bfloat16":
        warn_of_slow_bfloat16()
    return config.dtype == "bfloat16" or (config.dtype == "auto" and multiplies_bfloat16())


def prepare_for_training(model: Any, config: ModelConfig, *, sharded: bool) -> None:
    """Make training in the configured precision fast; a float32 model is left as it is.

    Args:
        model: With its adapters on, if it gets some; changed in place.
        config: Whose `dtype` and `lora` rule.
        sharded: Whether DeepSpeed will shard the model; it wants all weights in one precision.
    """
    if not uses_bfloat16(config):
        return
    if config.lora is not None and not sharded:
        round_frozen_matrices(model)


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
