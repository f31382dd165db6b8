"""Float32 matrix products with bfloat16 factors, for what must not be rounded to bfloat16 itself: logits and scores."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def rounded_factors(enabled: bool) -> Iterator[None]:
    """Let float32 matrix products on a CPU round their factors to bfloat16; sums and results stay float32.

    Logits made so keep more digits than those of autocast, whose results are bfloat16 too, and take half the time of
    float32 products where the processor multiplies bfloat16 (two cores with AMX, 512 x 256 x 8,192: 310 against
    150 GFLOP/s). Nothing changes on other processors, and on GPUs.
    """
    if not enabled:
        yield
        return
    settings: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, settings.fp32_precision = settings.fp32_precision, "bf16"
    try:
        yield
    finally:
        settings.fp32_precision = before
