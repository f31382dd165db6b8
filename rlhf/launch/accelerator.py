"""Accelerate's Accelerator for a runtime: data parallel, DeepSpeed, or one process."""

from typing import Any

from accelerate import Accelerator, DeepSpeedPlugin

from rlhf.launch.runtime import Runtime


def make_accelerator(runtime: Runtime, deepspeed: dict[str, Any] | None = None) -> Accelerator:
    """Return what prepares models and optimizers, and talks to the other processes.

    Args:
        runtime: Says on which device.
        deepspeed: From `deepspeed_config`; None: no DeepSpeed.
    """
    plugin = DeepSpeedPlugin(hf_ds_config=deepspeed) if deepspeed is not None else None
    # Precision is the runtime's alone: a variable of Accelerate's must not wrap every model in another one.
    return Accelerator(mixed_precision="no", cpu=runtime.device.type == "cpu", deepspeed_plugin=plugin)
