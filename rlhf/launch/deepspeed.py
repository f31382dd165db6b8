"""DeepSpeed ZeRO: its config, and putting sharded weights together again. The only importer of deepspeed.

Trainers get the config from `deepspeed_config`; stages save what `full_state` gives, so that each stage's folder loads
in one process. What a trainer does with the config is the trainer's matter, and the processes are `processes.py`'s,
whose functions are found here too.
"""

import copy
import importlib.util
import math
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
    "backward_and_step",
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
    "shard_frozen",
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


def shard_frozen(model: "nn.Module", accelerator: Any) -> Any:
    """Spread a model that is not trained over the processes, as ZeRO-3 does with the one that is.

    Args:
        model: Whole on every process.
        accelerator: Has prepared the trained model; under other stages `model` is returned as it is.
    """
    plugin = accelerator.state.deepspeed_plugin
    if plugin is None or plugin.zero_stage != 3:
        return model
    import deepspeed

    config = copy.deepcopy(plugin.deepspeed_config)
    for training_only in ("optimizer", "scheduler"):
        config.pop(training_only, None)
    config["zero_optimization"].pop("offload_optimizer", None)
    engine, *_ = deepspeed.initialize(model=model, config=config)
    return engine.eval()


def backward_and_step(engine: Any, loss: "Tensor", *, last: bool) -> float | None:
    """Run a backward pass of DeepSpeed's engine and, behind the last one of a minibatch, clip and step.

    A gradient that is not finite costs the step, under every ZeRO stage.

    Args:
        engine: What `Accelerator.prepare` returned.
        loss: Of one microbatch.
        last: Whether the step follows; gradients are communicated as the stage has it.

    Returns:
        The norm of all gradients before clipping; infinity where the step was skipped, None where none was due.
    """
    import torch

    engine.set_gradient_accumulation_boundary(is_boundary=last)
    engine.backward(loss)
    if not last:
        return None
    if engine.zero_optimization():
        engine.optimizer.check_grad_overflow = True  # older versions look at float16 alone
        engine.step()
        norm = float(engine.get_global_grad_norm() or 0.0)
        return float("inf") if engine.optimizer.overflow else norm
    trained = [parameter for parameter in engine.module.parameters() if parameter.grad is not None]
    norm = float(torch.nn.utils.get_total_norm([parameter.grad for parameter in trained]))
    if not math.isfinite(norm):
        for parameter in trained:
            parameter.grad = None  # stage 0 steps whatever it finds; where there is no gradient, nothing moves
    engine.step()
    return norm if math.isfinite(norm) else float("inf")


def forget_zero() -> None:
    """Call when a training is over and its weights are gathered: models that are loaded from now on are whole.

    transformers remembers the last ZeRO-3 config for as long as it exists, and shards whatever it loads meanwhile.
    """
    # What the last trainer left behind for the next one: accelerate the first, transformers 4 the second.
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
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
            "Install it: pip install 'rlhf-trainer[deepspeed]'; or set distributed.zero to null."
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
