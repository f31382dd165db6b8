"""The output layer's softmax in compiled code, `output_layer.cpp`, a tile of the vocabulary at a time.

Called by `policies.logprobs`, through the backend. One pass over the logits finds their peaks, one makes exponentials
and their sums, where torch's operations take one pass each. Products here are those of bfloat16 alone; float32 ones
are torch's.
"""

from ctypes import c_bool, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rlhf.cpu import compiler

_SOURCE = Path(__file__).with_name("output_layer.cpp")
_EVEN = 16  # what rows of matrices must divide by
_CHUNK = 64  # rows whose sum is made one by one
_ARGUMENTS = {  # before the number of threads
    "peaks": [c_void_p, c_float, c_void_p, *[c_int64] * 3],
    "powers": [c_bool, c_void_p, c_float, *[c_void_p] * 3, *[c_int64] * 3],
    "rounded_product": [c_bool, *[c_void_p] * 3, *[c_int64] * 3],
}


@cache
def library() -> Any:
    """Compile the code; None, and a warning, if that cannot be done."""
    made = compiler.library(_SOURCE, "-fopenmp")
    if made is None:
        return None
    for name, types in _ARGUMENTS.items():
        getattr(made, name).argtypes, getattr(made, name).restype = [*types, c_int], None
    return made


def multiplies_bfloat16() -> bool:
    """Whether compiled code has fast products of bfloat16 on this processor."""
    made = library()
    return made is not None and bool(made.multiplies_bfloat16())


def _call(name: str, *arguments: Any) -> None:
    """Call a function with tensors, numbers, and None for what there is not."""
    plain = (part.data_ptr() if isinstance(part, Tensor) else part for part in arguments)
    getattr(library(), name)(*plain, torch.get_num_threads())


def _is_even(x: Tensor, *dtypes: torch.dtype) -> bool:
    return x.dtype in dtypes and x.device.type == "cpu" and x.is_contiguous() and x.shape[-1] % _EVEN == 0


def tile_softmax(logits: Tensor, temperature: float, powers: Tensor | None) -> tuple[Tensor, Tensor] | None:
    """Compute peaks and sums of a softmax over a tile of the vocabulary, of z = logits / temperature.

    Args:
        logits: (v, n), a column for each token of the rows; -inf bans a token of the vocabulary.
        temperature: See above.
        powers: (v, n) Gets exp(z - max z), if it is given.

    Returns:
        max z and the sum of exp(z - max z), (n,) each; None for what the code cannot run.
    """
    kept = torch.float32 if powers is None else powers.dtype
    if not _is_even(logits, torch.float32) or not (
        kept == torch.float32 or (kept == torch.bfloat16 and multiplies_bfloat16())
    ):
        return None
    chunks, inverse = logits.new_empty(-(-len(logits) // _CHUNK), logits.shape[1]), 1 / temperature
    _call("peaks", logits, inverse, chunks, *logits.shape, _CHUNK)
    peaks = chunks.amax(0).clamp_(min=torch.finfo(torch.float32).min)
    _call("powers", kept == torch.bfloat16, logits, inverse, peaks, chunks, powers, *logits.shape, _CHUNK)
    return peaks, chunks.sum(0)


def rounded_product(weight: Tensor, x: Tensor) -> Tensor | None:
    """Compute weight (v, k) @ x' (k, n) in float32, factors rounded to bfloat16: logits must not be rounded themselves.

    Args:
        weight: In float32 or bfloat16.
        x: (n, k) float32, n a multiple of 16.

    Returns:
        (v, n); None for what the code cannot run.
    """
    if not (_is_even(weight, torch.float32, torch.bfloat16) and _is_even(x, torch.float32)) or len(x) % _EVEN:
        return None
    if not multiplies_bfloat16():
        return None
    out = x.new_empty(len(weight), len(x))
    _call("rounded_product", weight.dtype == torch.bfloat16, weight, x, out, *out.shape, x.shape[1])
    return out
