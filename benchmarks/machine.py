"""What was measured on, and how fast it multiplies matrices."""

import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

from rlhf.launch.runtime import multiplies_bfloat16

GEMM_SIZE = 2048  # square: large enough to hide what a call costs, small enough to be repeated often


def describe() -> dict[str, Any]:
    """Name the processor, its cores, and the versions that matter."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    fields = {name.strip(): text.strip() for name, text in named.items()}
    extensions = [name for name in ("amx_bf16", "avx512_bf16", "avx512f") if name in fields.get("flags", "").split()]
    name = fields.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({', '.join(extensions)})" if extensions else name


def gemm_rate(dtype: torch.dtype, windows: int = 5, seconds: float = 0.3) -> float:
    """Measure products of large square matrices, in operations a second: the best of several windows.

    The best, because it stands for what the machine can do; other work on it only takes away.
    """
    one, other = (torch.randn(GEMM_SIZE, GEMM_SIZE).to(dtype) for _ in range(2))
    torch.mm(one, other)
    return max(_rate(one, other, seconds) for _ in range(windows))


def _rate(one: torch.Tensor, other: torch.Tensor, seconds: float) -> float:
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        torch.mm(one, other)
        count += 1
    return 2 * GEMM_SIZE**3 * count / passed


def gemm_rates() -> dict[str, float]:
    """Measure the precisions that the processor multiplies."""
    precisions = {"fp32": torch.float32} | ({"bf16": torch.bfloat16} if multiplies_bfloat16() else {})
    return {name: gemm_rate(dtype) for name, dtype in precisions.items()}
