"""What `accelerate launch` was asked for that this project does not do. It is refused by name, never ignored.

accelerate passes its options to the processes as environment variables. Those that change how a model is computed or
spread would act inside the libraries of some stages and not of others, so that results would differ in silence.
"""

from collections.abc import Mapping

from rlhf.errors import ConfigError

__all__ = ["refuse_unsupported_launch"]

_SHARD = "Leave it out, and set distributed.zero (or --zero) to 1, 2 or 3: DeepSpeed ZeRO spreads what has to be spread"
# Environment variable -> values that ask for nothing, what asked for it, and the way out.
_UNSUPPORTED: dict[str, tuple[tuple[str, ...], str, str]] = {
    "ACCELERATE_USE_FSDP": (("false",), "FSDP (accelerate launch --use_fsdp)", _SHARD),
    "FSDP_SHARDING_STRATEGY": ((), "FSDP (accelerate launch --fsdp_sharding_strategy)", _SHARD),
    "ACCELERATE_USE_MEGATRON_LM": (("false",), "Megatron-LM (accelerate launch --use_megatron_lm)", _SHARD),
    "ACCELERATE_USE_PARALLELISM_CONFIG": (
        ("false",),
        "tensor, context or sequence parallelism (accelerate launch --use_parallelism_config)",
        _SHARD,
    ),
    "ACCELERATE_MIXED_PRECISION": (
        ("no",),
        "mixed precision (accelerate launch --mixed_precision)",
        "Leave it out, and set model.dtype to bfloat16 or auto",
    ),
    "ACCELERATE_DYNAMO_BACKEND": (
        ("no",),
        "torch.compile (accelerate launch --dynamo_backend)",
        "Leave it out: models are not compiled by it here",
    ),
    "XLA_USE_BF16": (("0",), "a TPU (accelerate launch --tpu)", "Run on CPUs or CUDA GPUs"),
    "XLA_DOWNCAST_BF16": (("0",), "a TPU (accelerate launch --tpu)", "Run on CPUs or CUDA GPUs"),
}


def refuse_unsupported_launch(environment: Mapping[str, str]) -> None:
    """Look at the variables that accelerate sets for its processes.

    Args:
        environment: `os.environ`.

    Raises:
        ConfigError: One of them asks for what is not supported; names it and the way out.
    """
    for variable, (harmless, what, way_out) in _UNSUPPORTED.items():
        value = environment.get(variable, "")
        if value and value.lower() not in harmless:
            raise ConfigError(f"{variable} is {value}: {what} is not supported here. {way_out}.")
