"""The two halves of a Llama block in compiled code, `blocks.cpp`: what `fused` computes, for plain weights.

Compiled where `native.compile_kernels` is on, and used where its products are the fastest there are: with AVX-512 in
float32, with AVX-512 BF16 in bfloat16, unless the processor has AMX, which only oneDNN uses. The same numbers as those
of `fused` up to rounding; in bfloat16 rounded less often.
"""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_bool, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.cpu import native
from rlhf.cpu.fused import FeedForward, Heads
from rlhf.packing.packed import rounded_up

_SOURCE = Path(__file__).with_name("blocks.cpp")
_EVEN = 16  # what widths must divide by
_CHUNK = 32  # tokens that a thread takes through all products of a half
_ROWS = 8  # tokens are filled up to


class _Call(ctypes.Structure):
    """As `Call` in blocks.cpp."""

    _fields_ = [
        *((name, c_int64) for name in ("n", "chunk", "size", "heads", "keys", "wide")),
        ("epsilon", c_float),
        *((name, c_void_p) for name in ("query", "key", "value", "output", "gate", "up", "down", "norm", "x")),
        *((name, c_void_p) for name in ("attended", "space", "middle", "inverse", "normed", "both", "products", "out")),
        *((name, c_void_p) for name in ("grad", "x_grad", "norm_grad", "attended_grad")),
        *((name, c_void_p) for name in ("heads_grad", "output_grad", "both_grad", "down_grad")),
    ]


@cache
def _library() -> Any:
    """Compile the code; None, and a warning, if that cannot be done."""
    library = native.library(_SOURCE, "-fopenmp", otherwise="blocks are left to torch's operations")
    if library is None:
        return None
    for name in ("project", "project_backward", "finish", "finish_backward"):
        function = getattr(library, name)
        function.argtypes, function.restype = [POINTER(_Call), c_bool, c_bool, c_int], None
    return library


@cache
def _is_fastest(dtype: torch.dtype) -> bool:
    """Whether this processor multiplies nothing faster."""
    known = native.capabilities()
    return bool(known.get("avx512_f")) and not (dtype == torch.bfloat16 and known.get("amx_bf16"))


def can_run(heads: Heads, layer: FeedForward, dtype: torch.dtype) -> bool:
    """Whether the code, which checks nothing, can run a block with products in a precision, and should."""
    projections = (heads.query, heads.key, heads.value, layer.output, layer.gate, layer.up, layer.down)
    if any(by.bias is not None or by.down is not None for by in projections):
        return False
    weights, norms = [by.weight for by in projections], [heads.norm, layer.norm]
    precisions = {weight.dtype for weight in weights}
    if len(precisions) > 1 or precisions - {torch.float32, dtype} or {x.dtype for x in norms} != {torch.float32}:
        return False
    for x in (*weights, *norms):
        if x.device.type != "cpu" or not x.is_contiguous() or any(size % _EVEN for size in x.shape):
            return False
    return native.computes(_library, dtype) and _is_fastest(dtype)


def _call(name: str, dtype: torch.dtype, x: Tensor, epsilon: float, weights: dict[str, Tensor], factors: int,
          **more: Tensor | int | None) -> None:  # fmt: skip
    """Call a function.

    Args:
        name: Its name.
        dtype: Of the products.
        x: (n, D) float32.
        epsilon: Of the norm.
        weights: By their names in `_Call`.
        factors: How many numbers its right factors have.
        more: By their names, None for what there is not.
    """
    space = x.new_empty(factors, dtype=dtype)
    given = {"n": len(x), "chunk": _CHUNK, "size": x.shape[1], "x": x, "space": space, **weights, **more}
    call = _Call(epsilon=epsilon, **{key: y.data_ptr() if isinstance(y, Tensor) else y for key, y in given.items()})
    rounded = [precision == torch.bfloat16 for precision in (dtype, list(weights.values())[-1].dtype)]
    getattr(_library(), name)(call, *rounded, torch.get_num_threads())


def _filled(tokens: int) -> int:
    return rounded_up(tokens, _ROWS)


def _chunks(tokens: int) -> int:
    return -(-tokens // _CHUNK)


class _Projections(torch.autograd.Function):
    """See `projections`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype, epsilon: float, keep: bool, *weights: Tensor) -> Tensor:
        sizes, size = _Projections.sizes(weights), x.shape[1]
        products = x.new_empty(len(x), sizes["heads"] + 2 * sizes["keys"], dtype=dtype)
        normed, inverse = torch.empty_like(x, dtype=dtype) if keep else None, x.new_empty(len(x))
        _call("project", dtype, x, epsilon, _Projections.named(weights), products.shape[1] * size, **sizes,
              products=products, normed=normed, inverse=inverse)  # fmt: skip
        ctx.epsilon = epsilon
        ctx.save_for_backward(x, normed, inverse, *weights)
        return products

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, normed, inverse, *weights = ctx.saved_tensors
        (n, size), wide = x.shape, grad.shape[1]
        x_grad, norm_grad = torch.empty_like(x), x.new_empty(_chunks(n), size)
        heads_grad = x.new_empty(wide, size) if any(ctx.needs_input_grad[5:]) else None
        _call("project_backward", grad.dtype, x, ctx.epsilon, _Projections.named(weights),
              wide * size + _filled(n) * (wide + size), **_Projections.sizes(weights), normed=normed, inverse=inverse,
              grad=grad.contiguous(), x_grad=x_grad, norm_grad=norm_grad, heads_grad=heads_grad)  # fmt: skip
        return x_grad, None, None, None, norm_grad.sum(0), *_parts(heads_grad, weights[1:])

    @staticmethod
    def named(weights: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(zip(("norm", "query", "key", "value"), weights, strict=True))

    @staticmethod
    def sizes(weights: Sequence[Tensor]) -> dict[str, int]:
        return {"heads": len(weights[1]), "keys": len(weights[2])}


class _BlockOutput(torch.autograd.Function):
    """See `block_output`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, attended: Tensor, epsilon: float, keep: bool, *weights: Tensor) -> Tensor:
        sizes, dtype = _BlockOutput.sizes(weights), attended.dtype
        out, inverse, middle = torch.empty_like(x), x.new_empty(len(x)), torch.empty_like(x)
        normed, both = None, None
        if keep:
            normed, both = torch.empty_like(x, dtype=dtype), x.new_empty(len(x), 2 * sizes["wide"], dtype=dtype)
        _call("finish", dtype, x, epsilon, _BlockOutput.named(weights), _BlockOutput.factors(x, sizes), **sizes,
              attended=attended, middle=middle, inverse=inverse, normed=normed, both=both, out=out)  # fmt: skip
        ctx.epsilon = epsilon
        ctx.save_for_backward(attended, middle, normed, inverse, both, *weights)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        attended, middle, normed, inverse, both, *weights = ctx.saved_tensors
        (n, size), sizes = grad.shape, _BlockOutput.sizes(weights)
        heads, wide = sizes["heads"], sizes["wide"]
        x_grad, norm_grad = torch.empty_like(middle), middle.new_empty(_chunks(n), size)
        attended_grad = torch.empty_like(attended)
        output_grad = both_grad = down_grad = None
        if any(ctx.needs_input_grad[5:]):
            output_grad, down_grad = middle.new_empty(size, heads), middle.new_empty(size, wide)
            both_grad = middle.new_empty(2 * wide, size)
        factors = _BlockOutput.factors(middle, sizes) + _filled(n) * (3 * size + heads + 3 * wide)
        _call("finish_backward", attended.dtype, middle, ctx.epsilon, _BlockOutput.named(weights), factors, **sizes,
              attended=attended, middle=middle, normed=normed, inverse=inverse, both=both, grad=grad.contiguous(),
              x_grad=x_grad, norm_grad=norm_grad, attended_grad=attended_grad, output_grad=output_grad,
              both_grad=both_grad, down_grad=down_grad)  # fmt: skip
        of_weights = [
            *_parts(output_grad, weights[1:2]),
            *_parts(both_grad, weights[2:4]),
            *_parts(down_grad, weights[4:]),
        ]
        return x_grad, attended_grad, None, None, norm_grad.sum(0), *of_weights

    @staticmethod
    def named(weights: Sequence[Tensor]) -> dict[str, Tensor]:
        return dict(zip(("norm", "output", "gate", "up", "down"), weights, strict=True))

    @staticmethod
    def sizes(weights: Sequence[Tensor]) -> dict[str, int]:
        return {"heads": weights[1].shape[1], "wide": len(weights[2])}

    @staticmethod
    def factors(x: Tensor, sizes: dict[str, int]) -> int:
        return x.shape[1] * (sizes["heads"] + 3 * sizes["wide"])


def _parts(grad: Tensor | None, weights: Sequence[Tensor]) -> list[Tensor | None]:
    """Gradients of weights that lie below each other, in their precision."""
    if grad is None:
        return [None] * len(weights)
    parts = torch.split(grad, [len(weight) for weight in weights])
    return [part.to(weight.dtype) for part, weight in zip(parts, weights, strict=True)]


def projections(x: Tensor, heads: Heads, dtype: torch.dtype) -> Tensor:
    """See `fused.projections`; `can_run` said yes."""
    weights = heads.norm, heads.query.weight, heads.key.weight, heads.value.weight
    result: Tensor = _Projections.apply(  # type: ignore[no-untyped-call]
        x, dtype, heads.epsilon, torch.is_grad_enabled(), *weights
    )
    return result


def block_output(x: Tensor, attended: Tensor, layer: FeedForward, dtype: torch.dtype) -> Tensor:
    """See `fused.block_output`; `can_run` said yes."""
    weights = layer.norm, layer.output.weight, layer.gate.weight, layer.up.weight, layer.down.weight
    result: Tensor = _BlockOutput.apply(  # type: ignore[no-untyped-call]
        x, attended.to(dtype).contiguous(), layer.epsilon, torch.is_grad_enabled(), *weights
    )
    return result
