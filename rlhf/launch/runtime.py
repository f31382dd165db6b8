"""Where and how a process computes: decided once, and handed to whoever needs it. Nobody else asks for devices."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from rlhf.config.model import ModelConfig
from rlhf.config.schema import RuntimeConfig
from rlhf.errors import ConfigError
from rlhf.launch.processes import join, rank, world_size

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Runtime:
    """What one process computes on.

    Attributes:
        device: Where models and tensors live.
        compute_dtype: Of matrix products: float32, or bfloat16 under autocast. Weights that are trained stay float32.
        compile_kernels: Whether the CPU backend may compile C++; None: where there is a compiler.
        rank: Number of this process, from 0.
        world_size: Number of processes.
    """

    device: torch.device
    compute_dtype: torch.dtype = torch.float32
    compile_kernels: bool | None = None
    rank: int = 0
    world_size: int = 1

    @classmethod
    def detect(cls, config: RuntimeConfig | None = None, model: ModelConfig | None = None) -> "Runtime":
        """Decide for this process.

        Args:
            config: Section `runtime`; None means its defaults.
            model: Whose `dtype` rules the compute precision; None means float32.

        Raises:
            ConfigError: A device is asked for that is not there.
        """
        config = config or RuntimeConfig()
        join()  # which gives each process its own GPU
        if config.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("runtime.device is cuda, but torch finds no CUDA device: set it to auto or cpu")
        on_gpu = config.device != "cpu" and torch.cuda.is_available()
        device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
        runtime = cls(device, torch.float32, config.compile_kernels, rank(), world_size())
        return runtime if model is None else runtime.for_model(model)

    def for_model(self, model: ModelConfig) -> "Runtime":
        """Return the same runtime with the compute precision of a model."""
        if model.dtype == "bfloat16":
            warn_of_slow_bfloat16(self.device.type)
        fast = model.dtype == "auto" and multiplies_bfloat16(self.device.type)
        lowered = model.dtype == "bfloat16" or fast
        return replace(self, compute_dtype=torch.bfloat16 if lowered else torch.float32)

    @property
    def bf16(self) -> bool:
        """Whether matrix products are in bfloat16."""
        return self.compute_dtype == torch.bfloat16

    @property
    def is_main_process(self) -> bool:
        """Whether this is the first process, which alone writes files."""
        return self.rank == 0

    def autocast(self) -> torch.autocast:
        """Return the context in which trunks run: bfloat16 products over float32 weights, or nothing."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16)


@cache
def multiplies_bfloat16(device_type: str = "cpu") -> bool:
    """Whether there are instructions for bfloat16 products: those of a GPU, AMX, AVX-512 BF16, or Arm's."""
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    known = processor_capabilities()
    return any(known.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16"))


def processor_capabilities() -> Mapping[str, Any]:
    """What this processor can do, as torch says; nothing, if it is too old a torch to say."""
    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return known


@cache
def warn_of_slow_bfloat16(device_type: str = "cpu") -> None:
    """Say once that bfloat16 was asked for where nothing multiplies it."""
    if not multiplies_bfloat16(device_type):
        logger.warning(
            "this processor does not multiply bfloat16: its products take 10 to 100 times as long as those of float32. "
            "In a config, dtype: auto takes bfloat16 only where it is fast"
        )
