"""Attention of packed rows in compiled code, `attention.cpp`: no padding, no scores in memory, no future tokens.

Called by `trunk` between the halves of a block. In float32, and in bfloat16 where the processor has AVX-512 BF16; keys
and values of beginnings that rows share are read from the one place where they stand.
"""

import ctypes
from ctypes import POINTER, c_bool, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.cpu import compiler
from rlhf.packing.packed import PackedRows

_SOURCE = Path(__file__).with_name("attention.cpp")
EVEN = 32  # numbers that a head must be a multiple of
LONGEST = 2048  # tokens of a row; the backward pass holds two squares of them for each thread


class _Call(ctypes.Structure):
    """As `Call` in attention.cpp."""

    _fields_ = [
        *((name, c_int64) for name in ("tokens", "queries", "keys", "size", "rows", "columns", "repeats")),
        *((name, c_void_p) for name in ("grid", "lengths", "begins", "repeated", "places", "cos", "sin", "heads")),
        *((name, c_void_p) for name in ("out", "softmax", "grad", "heads_grad", "key_grad", "value_grad")),
    ]


@cache
def library() -> Any:
    """Compile the code; None, and a warning, if that cannot be done."""
    made = compiler.library(_SOURCE, "-fopenmp")
    if made is not None:
        made.attention.argtypes, made.attention.restype = [POINTER(_Call), c_bool, c_bool, c_int], None
    return made


class _Attention(torch.autograd.Function):
    """See `attention`."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, cos: Tensor, sin: Tensor, rows: PackedRows, queries: int, size: int) -> Tensor:
        out, softmax = heads.new_empty(len(heads), queries * size), cos.new_empty(len(heads), queries, 2)
        ctx.rows, ctx.queries, ctx.size = rows, queries, size
        ctx.save_for_backward(heads, cos, sin, softmax)
        _run(rows, queries, size, False, heads, cos, sin, softmax, out=out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        heads, cos, *_ = ctx.saved_tensors
        heads_grad, keys = torch.empty_like(heads), (heads.shape[1] - ctx.queries * ctx.size) // 2
        sums = cos.new_empty(2, len(heads) + len(ctx.rows.repeated), keys)
        _run(ctx.rows, ctx.queries, ctx.size, True, *ctx.saved_tensors, grad=grad.contiguous(), heads_grad=heads_grad,
             key_grad=sums[0], value_grad=sums[1])  # fmt: skip
        return heads_grad, None, None, None, None, None


def _run(rows: PackedRows, queries: int, size: int, backward: bool, heads: Tensor, cos: Tensor, sin: Tensor,
         softmax: Tensor, **more: Tensor) -> None:  # fmt: skip
    tensors = {
        "grid": rows.grid, "lengths": rows.lengths, "begins": rows.begins, "repeated": rows.begins_before,
        "places": rows.repeated, "heads": heads, "cos": cos, "sin": sin, "softmax": softmax, **more,
    }  # fmt: skip
    call = _Call(
        tokens=len(heads), queries=queries, keys=(heads.shape[1] // size - queries) // 2, size=size,
        rows=len(rows.lengths), columns=rows.grid.shape[1], repeats=len(rows.repeated),
        **{name: tensor.data_ptr() for name, tensor in tensors.items()},
    )  # fmt: skip
    library().attention(call, heads.dtype == torch.bfloat16, backward, torch.get_num_threads())


def attention(heads: Tensor, cos: Tensor, sin: Tensor, rows: PackedRows, queries: int, size: int) -> Tensor:
    """Apply rotary embeddings to queries and keys, and let each token attend to its row up to itself.

    Args:
        heads: Queries, keys and values side by side, (n, (H + 2 K) * d), where K divides H; in float32 or bfloat16.
        cos: (n, 1, d / 2) float32, as is sin.
        sin: See cos.
        rows: How the n tokens are packed; none longer than `LONGEST`.
        queries: H.
        size: d, a multiple of `EVEN`.

    Returns:
        (n, H * d).
    """
    result: Tensor = _Attention.apply(heads, cos, sin, rows, queries, size)  # type: ignore[no-untyped-call]
    return result
