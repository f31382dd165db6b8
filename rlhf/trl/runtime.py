"""Where and in which precision to compute, and DeepSpeed's config, from transformers' and accelerate's settings."""

import copy
import os
from dataclasses import replace
from typing import Any

import torch

from rlhf.config.schema import DistributedConfig, RuntimeConfig
from rlhf.launch.deepspeed import deepspeed_config
from rlhf.launch.runtime import Runtime, warn_of_slow_bfloat16
from rlhf.trl.config import PPOConfig

# Keys of a DeepSpeed config that follow from the options.
_FOLLOWS = frozenset(
    "train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps gradient_clipping bf16 fp16 "
    "torch_autocast".split()
)


def to_runtime(args: PPOConfig) -> Runtime:
    """Say where and in which precision to compute.

    Raises:
        ValueError: accelerate was told to use what is not supported.
    """
    lowered = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")  # set by `accelerate launch --mixed_precision`
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise ValueError("accelerate was told to use FSDP, which does not work here: choose DeepSpeed, or neither")
    if lowered not in ("no", "bf16"):
        raise ValueError(f"accelerate was told to use mixed precision {lowered}; allowed are no and bf16")
    runtime = Runtime.detect(
        RuntimeConfig(device="cpu" if args.use_cpu else "auto", compile_kernels=args.compile_kernels)
    )
    if not (args.bf16 or lowered == "bf16"):
        return runtime
    warn_of_slow_bfloat16(runtime.device.type)
    return replace(runtime, compute_dtype=torch.bfloat16)


def to_deepspeed(args: PPOConfig, *, bf16: bool) -> dict[str, Any] | None:
    """Return the DeepSpeed config of the loop, which says itself when to step; None without DeepSpeed.

    Raises:
        ValueError: The given config has a section of its own for what an option says.
    """
    if args.deepspeed_plugin is None:
        return None
    given = copy.deepcopy(dict(args.deepspeed_plugin.deepspeed_config))
    for name, option in {"optimizer": "optim and learning_rate", "scheduler": "lr_scheduler_type"}.items():
        if name in given:
            raise ValueError(f"the DeepSpeed config has a section {name}: remove it, and set {option}")
    if given.get("fp16", {}).get("enabled") is True:
        raise ValueError("the DeepSpeed config enables fp16, which does not work here: remove it, and set bf16")
    zero = given.pop("zero_optimization", {})
    offload = zero.pop("offload_optimizer", None) or {}
    stage = zero.pop("stage", 0)
    # Precision, sizes and clipping follow from the options; what is "auto" is left to DeepSpeed.
    extra = {key: value for key, value in given.items() if key not in _FOLLOWS and value != "auto"}
    if zero := {key: value for key, value in zero.items() if value != "auto" and not key.startswith("stage3_gather")}:
        extra["zero_optimization"] = zero
    offloaded = offload.get("device", "none") not in ("none", None)
    return deepspeed_config(
        DistributedConfig(zero=stage, offload=offloaded, deepspeed=extra),
        bf16=bf16,
        max_gradient_norm=args.max_grad_norm or None,
    )
