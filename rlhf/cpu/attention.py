"""Attention for training on a CPU, where torch's own is slow: short rows by plain matrix products.

Measured with torch 2.13 on two cores, forward and backward, 9 heads of 64 with 3 of keys, in milliseconds:

    rows x tokens     torch bf16   torch fp32   here bf16   here fp32
     4 x 160                  26           12           8          10
    16 x 140                  97           42          29          32
     8 x 300                  85           62          60          66
     4 x 512                  73           72          59         111

torch computes the backward pass of bfloat16 attention in an unblocked loop; its float32 blocks are too small for short
rows. Longer rows, for which all scores at once would be too large, go to torch in float32. bfloat16 is used where
autocast says so: in training, not in the sampler, whose single-token steps have no backward pass.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from rlhf.cpu import kernels
from rlhf.cpu.rounding import rounded_factors
from rlhf.packing.packed import PackedRows

NAME = "sdpa_short_rows"
LONGEST = {torch.float32: 160, torch.bfloat16: 512}  # tokens up to which matrix products win


class _MatrixAttention(torch.autograd.Function):
    """softmax(q k' / sqrt(d) + mask) v, its products in `dtype`, but the scores' sums in float32 at least.

    q is (B, H, T, d), k and v are (B, K, T, d); heads that share keys share an entry of the products' batch.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        (rows, heads, length, size), shared = q.shape, q.shape[1] // k.shape[1]
        wide = torch.promote_types(dtype, torch.float32)
        mask = _causal(length, wide, q.device) if mask is None else mask[:, :, None]
        q, k, v = q.reshape(-1, shared * length, size), k.reshape(-1, length, size), v.reshape(-1, length, size)
        ctx.scale = size**-0.5
        with rounded_factors(dtype == torch.bfloat16):
            scores = torch.bmm(q.to(wide), k.to(wide).transpose(1, 2)).view(rows, -1, shared, length, length)
        weights = torch.add(mask, scores, alpha=ctx.scale, out=scores).softmax(-1).to(dtype)
        q, k, v, weights = q.to(dtype), k.to(dtype), v.to(dtype), weights.view(-1, shared * length, length)
        ctx.save_for_backward(q, k, v, weights)
        return torch.bmm(weights, v).view(rows, heads, length, size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights = ctx.saved_tensors
        (rows, heads, length, size), kept = grad.shape, k.shape[0] // grad.shape[0]
        grad = grad.to(weights.dtype).reshape(q.shape)
        v_grad = torch.bmm(weights.transpose(1, 2), grad)
        weights_grad = torch.bmm(grad, v.transpose(1, 2))
        scores_grad = torch._softmax_backward_data(weights_grad, weights, -1, weights.dtype).mul_(ctx.scale)
        q_grad, k_grad = torch.bmm(scores_grad, k), torch.bmm(scores_grad.transpose(1, 2), q)
        return (
            q_grad.view(rows, heads, length, size),
            k_grad.view(rows, kept, length, size),
            v_grad.view(rows, kept, length, size),
            None,
            None,
        )


def _causal(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """What is added to scores (l, l), so that nothing sees what comes after it."""
    return torch.full((length, length), -torch.inf, dtype=dtype, device=device).triu_(1)


def matrix_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Causal attention with all scores in memory at once.

    Args:
        query: (B, H, T, d).
        key: (B, K, T, d), where K divides H.
        value: (B, K, T, d).
        mask: (B or 1, 1, T, T): True, or 0, where a position may be attended to; None for plain causality.
        dtype: Of the products behind the scores.

    Returns:
        (B, H, T, d).
    """
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, torch.finfo(torch.float32).min)
    output: Tensor = _MatrixAttention.apply(query, key, value, mask, dtype)  # type: ignore[no-untyped-call]
    return output


class _SplitHeads(torch.autograd.Function):
    """See `turned_heads`."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, rows: PackedRows,
                size: int) -> tuple[Tensor, ...]:  # fmt: skip
        ctx.rows, ctx.dtype = rows, query.dtype
        ctx.save_for_backward(cos, sin)
        query, key, value = (x.view(len(x), -1, size) for x in (query, key, value))
        turned = (kernels.rotate(x, cos, sin, cos.dtype) for x in (query, key))
        return tuple(rows.split_heads(x) for x in (*turned, value))

    @staticmethod
    def backward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor | None, ...]:
        """Keys and values of a token that several rows share are read in all of them; what its query found, in one."""
        (cos, sin), rows = ctx.saved_tensors, ctx.rows
        packed = [kernels.rotate(rows.merge_heads(grad), cos, -sin, ctx.dtype).flatten(1) for grad in (query, key)]
        packed.append(rows.merge_heads(value).flatten(1))
        if len(rows.repeats):  # the sums are float32, and rounded once
            turned = kernels.rotate(rows.repeated_heads(key), cos[rows.repeated], -sin[rows.repeated], ctx.dtype)
            packed[1].index_add_(0, rows.repeated, turned.flatten(1))
            packed[2].index_add_(0, rows.repeated, rows.repeated_heads(value).flatten(1))
        return *packed, None, None, None, None


def turned_heads(
    query: Tensor, key: Tensor, value: Tensor, cos: Tensor, sin: Tensor, rows: PackedRows, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Turn queries and keys by their positions' angles, and lay all out in padded rows.

    Args:
        query: (n, H * d).
        key: (n, K * d).
        value: (n, K * d).
        cos: (n, 1, d / 2), as is sin.
        sin: See cos.
        rows: How the n tokens are packed.
        size: d.

    Returns:
        Queries (b, H, l, d) and keys (b, K, l, d) in the precision of cos, values (b, K, l, d) in their own.
    """
    result: tuple[Tensor, Tensor, Tensor] = _SplitHeads.apply(  # type: ignore[no-untyped-call]
        query, key, value, cos, sin, rows, size
    )
    return result


class _MergeHeads(torch.autograd.Function):
    """(b, H, l, d) of padded rows to packed (n, H * d); padding and repeated tokens get gradient 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: PackedRows) -> Tensor:
        ctx.rows, ctx.size = rows, x.shape[-1]
        return rows.merge_heads(x).flatten(1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        rows, padded = ctx.rows, ctx.rows.split_heads(grad.reshape(len(grad), -1, ctx.size))
        return padded.mul_(rows.first.view(-1, 1, rows.width, 1)), None


def causal_attention(query: Tensor, key: Tensor, value: Tensor, rows: PackedRows, dtype: torch.dtype) -> Tensor:
    """Causal attention within each of several rows.

    Args:
        query: (b, H, l, d), padded on the right, as are key and value.
        key: (b, K, l, d), where K divides H.
        value: (b, K, l, d).
        rows: How the result is packed.
        dtype: Of the products behind the scores.

    Returns:
        (n, H * d), in `dtype`.
    """
    if rows.width <= LONGEST.get(dtype, 0):
        output = matrix_attention(query, key, value, None, dtype)
    else:
        value = value.to(query.dtype)
        output = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    merged: Tensor = _MergeHeads.apply(output.to(dtype), rows)  # type: ignore[no-untyped-call]
    return merged


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Choose by length; q is (B, H, T, d), k and v are (B, K, T, d), the result is (B, T, H, d)."""
    lowered = torch.is_autocast_enabled(query.device.type)
    dtype = torch.bfloat16 if lowered else query.dtype
    with torch.autocast(query.device.type, enabled=False):
        if 1 < query.shape[2] <= LONGEST.get(dtype, 0) and _is_plain(module, query, key, attention_mask, options):
            output = matrix_attention(query, key, value, attention_mask, dtype)
            return output.transpose(1, 2).contiguous(), None
        if lowered:
            query, key, value = query.float(), key.float(), value.float()
        if attention_mask is not None and attention_mask.is_floating_point():
            attention_mask = attention_mask.to(query.dtype)
        result: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return result[0].to(dtype), None


def _is_plain(module: Any, query: Tensor, key: Tensor, mask: Tensor | None, options: dict[str, Any]) -> bool:
    """Whether this is causal self-attention over whole rows, and nothing else."""
    causal = options.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    usual_scale = options.get("scaling") is None or math.isclose(options["scaling"], query.shape[-1] ** -0.5)
    more = options.get("dropout") or options.get("position_bias") is not None
    return query.shape[2] == key.shape[2] and (causal or mask is not None) and usual_scale and not more


def prefer_fast_attention(model: Any) -> None:
    """Let a model on a CPU use this attention, if it would use torch's own otherwise."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    chosen = getattr(getattr(base, "config", None), "_attn_implementation", None)
    if chosen == "sdpa" and not torch.cuda.is_available():
        base.set_attn_implementation(NAME)


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
