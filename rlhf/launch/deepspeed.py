"""DeepSpeed ZeRO: its config, and putting sharded weights together again. The only importer of deepspeed.

Trainers get the config from `deepspeed_config`; stages save what `full_state` gives, so that each stage's folder loads
in one process. What a trainer does with the config is the trainer's matter, and the processes are `processes.py`'s,
whose functions are found here too.
"""

import copy
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from rlhf.errors import ConfigError
from rlhf.launch.processes import barrier, gather, join, launch, rank, rendezvous, world_size
from rlhf.launch.rank import is_main_process

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rlhf.config.schema import DistributedConfig

__all__ = [
    "barrier",
    "deepspeed_config",
    "forget_zero",
    "full_state",
    "gather",
    "gathered_parameters",
    "is_main_process",
    "join",
    "launch",
    "rank",
    "world_size",
]

# Keys of the DeepSpeed config that follow from ours -> the key that sets them.
_OWNED = {
    "train_batch_size": "the stage's batch_size",
    "train_micro_batch_size_per_gpu": "the stage's microbatch_size",
    "gradient_accumulation_steps": "the stage's batch_size and microbatch_size",
    "gradient_clipping": "the stage's max_gradient_norm",
    "optimizer": "the stage's learning_rate and weight_decay",
    "scheduler": "the stage's scheduler",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "torch_autocast": "model.dtype",
    "zero_optimization.stage": "distributed.zero",
    "zero_optimization.offload_optimizer": "distributed.offload",
}


def deepspeed_config(
    config: "DistributedConfig",
    *,
    bf16: bool,
    max_gradient_norm: float | None,
    microbatch_size: int = 1,
    accumulation_steps: int = 1,
) -> dict[str, Any] | None:
    """Return the DeepSpeed config of a stage and make this process ready for it; None if ZeRO is not asked for.

    The optimizer is the trainer's own (AdamW of torch), so that no operator has to be compiled. In bfloat16 the forward
    pass runs under autocast; weights, gradients and optimizer stay float32, as without DeepSpeed. Models are loaded
    whole and sharded when the trainer prepares them.

    Args:
        config: Section `distributed`.
        bf16: Whether to compute in bfloat16.
        max_gradient_norm: Gradients are scaled down to this norm; None leaves them.
        microbatch_size: Rows of one forward pass and process. PPO, whose microbatches differ in size, leaves it at 1.
        accumulation_steps: Forward passes that share an optimizer step; 1 for PPO, which says itself when to step.

    Raises:
        ConfigError: deepspeed is not installed, `distributed.deepspeed` sets a key that follows from another one, or
            accelerate's own settings contradict.
    """
    import torch

    if not torch.cuda.is_available():  # accelerate imports DeepSpeed in any case, which would look for an accelerator
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    forget_zero()
    join()
    if config.zero is None:
        if "ACCELERATE_CONFIG_DS_FIELDS" in os.environ:  # set by `accelerate launch` alone
            raise ConfigError("accelerate was told to use DeepSpeed, but distributed.zero is null: set it to a stage.")
        return None
    _refuse_owned(config.deepspeed)
    _ready_for_deepspeed(config.zero)
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": microbatch_size,
        "gradient_accumulation_steps": accumulation_steps,
        "gradient_clipping": max_gradient_norm or 0.0,
        "zero_optimization": _zero_optimization(config),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if bf16:
        ours["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return _merged(ours, config.deepspeed)


def gathered_parameters(parameters: Iterable["nn.Parameter"]) -> AbstractContextManager[Any]:
    """Inside, these parameters are whole on every process, for reading; every process must come here.

    Only ZeRO-3 spreads parameters; others are whole anyway.
    """
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        return nullcontext()
    import deepspeed

    context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(sharded)
    return context


def full_state(model: "nn.Module", *, trainable_only: bool = False) -> dict[str, "Tensor"]:
    """Return a model's parameters on the CPU, whole also under ZeRO-3; every process must call this.

    One parameter is gathered at a time. Weights that are tied appear once; buffers, which nothing trains, are left out.

    Args:
        model: The model itself, not what a trainer wraps around it.
        trainable_only: Leave out what is frozen, as a model's own weights are under adapters.

    Returns:
        Name -> tensor on the first process, nothing on the others.
    """
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or not trainable_only:
            with gathered_parameters([parameter]):
                if is_main_process():
                    state[name] = parameter.detach().to("cpu", copy=True)
    return state


def forget_zero() -> None:
    """Call when a training is over and its weights are gathered: models that are loaded from now on are whole.

    transformers remembers the last ZeRO-3 config for as long as it exists, and shards whatever it loads meanwhile.
    """
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)  # accelerate leaves it behind for the next trainer
    if "deepspeed" in sys.modules:
        from transformers.integrations.deepspeed import unset_hf_deepspeed_config

        unset_hf_deepspeed_config()


def _zero_optimization(config: "DistributedConfig") -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": config.zero}
    if config.zero == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = True  # lets accelerate put a whole state together
    if config.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    return zero


def _ready_for_deepspeed(stage: int) -> None:
    """Import DeepSpeed in such a way that it compiles nothing, and give it the environment that it insists on."""
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            f"distributed.zero is {stage}, but deepspeed is not installed (it exists for Linux). "
            "Install it: pip install deepspeed; or set distributed.zero to null."
        )
    if "RANK" not in os.environ:  # a run of one process, started without a launcher
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1", **rendezvous())
    import deepspeed

    if (
        os.environ.get("DS_ACCELERATOR") == "cpu"
    ):  # else the first process group compiles a shared-memory operator; gloo does without
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # DeepSpeed's own calls; torch renamed these functions.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+_tensor` is deprecated", FutureWarning)


def _refuse_owned(extra: dict[str, object]) -> None:
    zero = extra.get("zero_optimization")
    inner = [f"zero_optimization.{key}" for key in zero] if isinstance(zero, dict) else []
    for key in (*extra, *inner):
        if key in _OWNED:
            raise ConfigError(f"distributed.deepspeed.{key} follows from {_OWNED[key]}: remove it and set that.")


def _merged(ours: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """Lay `extra` over `ours`, section by section."""
    merged = copy.deepcopy(ours)
    for key, value in extra.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = copy.deepcopy(value)
    return merged
