"""The formulas of `kernels` in compiled code, `kernels.cpp`: one pass each, where torch's operations take several.

Compiled where `native.compile_kernels` is on, for float32, and for products in bfloat16 where the processor has AVX-512
BF16. The same numbers up to rounding.
"""

from collections.abc import Sequence
from ctypes import c_bool, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.cpu import native

_SOURCE = Path(__file__).with_name("kernels.cpp")
_EVEN = 16  # what rows of matrices must divide by
_CHUNK = 64  # rows whose sum is made one by one
_ARGUMENTS = {  # before the number of threads
    "rms_norm": [c_bool, *[c_void_p] * 3, c_float, *[c_void_p] * 3, *[c_int64] * 2],
    "rms_norm_backward": [c_bool, *[c_void_p] * 7, *[c_int64] * 3],
    "gated": [c_bool, *[c_void_p] * 2, *[c_int64] * 2],
    "gated_backward": [c_bool, *[c_void_p] * 4, *[c_int64] * 2],
    "peaks": [c_void_p, c_float, c_void_p, *[c_int64] * 3],
    "powers": [c_bool, c_void_p, c_float, *[c_void_p] * 3, *[c_int64] * 3],
    "rounded_product": [c_bool, *[c_void_p] * 3, *[c_int64] * 3],
}


@cache
def _library() -> Any:
    """Compile the code; None, and a warning, if that cannot be done."""
    library = native.library(_SOURCE, "-fopenmp", otherwise="norms, gates and softmax are left to torch's operations")
    if library is None:
        return None
    for name, types in _ARGUMENTS.items():
        getattr(library, name).argtypes, getattr(library, name).restype = [*types, c_int], None
    return library


def can_run(dtype: torch.dtype, *, factors: Sequence[Tensor] = (), others: Sequence[Tensor] = ()) -> bool:
    """Whether the code, which checks nothing, can run with products in a precision.

    Args:
        dtype: The precision.
        factors: Tensors that must have it.
        others: Tensors that must be float32.
    """
    if any(x.dtype != dtype for x in factors) or any(x.dtype != torch.float32 for x in others):
        return False
    if any(x.device.type != "cpu" or x.shape[-1] % _EVEN or not x.is_contiguous() for x in (*factors, *others)):
        return False
    return native.computes(_library, dtype)


def _call(name: str, *arguments: Any) -> None:
    """Call a function with tensors, numbers, and None for what there is not."""
    plain = (part.data_ptr() if isinstance(part, Tensor) else part for part in arguments)
    getattr(_library(), name)(*plain, torch.get_num_threads())


def _rounded(dtype: torch.dtype) -> bool:
    return dtype == torch.bfloat16


def _chunks(rows: int) -> int:
    return -(-rows // _CHUNK)


def rms_norm(
    x: Tensor, addend: Tensor | None, weight: Tensor, epsilon: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.add_rms_norm`."""
    total = x if addend is None else torch.empty_like(x)
    normed, inverse = torch.empty_like(x, dtype=dtype), x.new_empty(len(x), 1)
    _call("rms_norm", _rounded(dtype), x, addend, weight, epsilon, total, normed, inverse, *x.shape)
    return total, normed, inverse


def rms_norm_backward(
    grad: Tensor, x: Tensor, inverse: Tensor, weight: Tensor, straight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See `kernels.rms_norm_backward`."""
    x_grad, weight_grad = torch.empty_like(x), x.new_empty(_chunks(len(x)), x.shape[1])
    _call("rms_norm_backward", _rounded(grad.dtype), grad, x, inverse, weight, straight, x_grad, weight_grad, *x.shape,
          _CHUNK)  # fmt: skip
    return x_grad, weight_grad.sum(0)


def can_gate(both: Tensor, *grads: Tensor) -> bool:
    """Whether `gated` can run, or `gated_backward` with a gradient."""
    return both.shape[-1] % (2 * _EVEN) == 0 and can_run(both.dtype, factors=[both, *grads])


def gated(both: Tensor) -> Tensor:
    """See `kernels.gated`."""
    out = both.new_empty(len(both), both.shape[1] // 2)
    _call("gated", _rounded(both.dtype), both, out, *out.shape)
    return out


def gated_backward(grad: Tensor, both: Tensor) -> tuple[Tensor, Tensor]:
    """See `kernels.gated_backward`."""
    both_grad, out = torch.empty_like(both), torch.empty_like(grad)
    _call("gated_backward", _rounded(both.dtype), grad, both, both_grad, out, *out.shape)
    return both_grad, out


def tile_softmax(logits: Tensor, temperature: float, powers: Tensor | None) -> tuple[Tensor, Tensor]:
    """See `kernels.tile_softmax`; without z at the columns."""
    chunks, inverse = logits.new_empty(_chunks(len(logits)), logits.shape[1]), 1 / temperature
    _call("peaks", logits, inverse, chunks, *logits.shape, _CHUNK)
    peaks = chunks.amax(0).clamp_(min=torch.finfo(torch.float32).min)
    rounded = powers is not None and _rounded(powers.dtype)
    _call("powers", rounded, logits, inverse, peaks, chunks, powers, *logits.shape, _CHUNK)
    return peaks, chunks.sum(0)


def can_multiply(weight: Tensor, x: Tensor) -> bool:
    """Whether `rounded_product` can multiply them."""
    factors = [weight] if weight.dtype == torch.bfloat16 else []
    return len(x) % _EVEN == 0 and can_run(torch.bfloat16, factors=factors, others=[x, *([] if factors else [weight])])


def rounded_product(weight: Tensor, x: Tensor) -> Tensor:
    """Return weight (v, k) @ x' (k, n) in float32, factors rounded to bfloat16: what `rounded_factors` means.

    Args:
        weight: In float32 or bfloat16.
        x: (n, k) float32, n a multiple of 16.
    """
    out = x.new_empty(len(weight), len(x))
    _call("rounded_product", _rounded(weight.dtype), weight, x, out, *out.shape, x.shape[1])
    return out
