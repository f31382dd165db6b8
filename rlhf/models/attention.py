"""Attention for training in bfloat16 on a CPU: computed in float32.

torch 2.13 computes the backward pass of bfloat16 attention on a CPU in an unblocked loop, about five times slower than
the same in float32 with two casts around it. Forward passes without gradient, and float32 itself, are left as they are.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "sdpa_float32_backward"


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Transformers' scaled-dot-product attention; q, k, v are (B, heads, T, d), the result is (B, T, heads, d)."""
    if query.dtype != torch.bfloat16 or not torch.is_grad_enabled():
        result: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return result
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast(query.device.type, enabled=False):
        output, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **options)
    return output.to(query.dtype), None


def prefer_fast_backward(model: Any) -> None:
    """Let a model on a CPU use this attention, if it would use torch's own otherwise."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not torch.cuda.is_available() and base.config._attn_implementation == "sdpa":
        base.set_attn_implementation(NAME)


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
