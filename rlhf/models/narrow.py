"""Products of a matrix with few columns in float32, of which decoding is made: by a small kernel of our own.

Such a product has every weight to read and little to compute, at which MKL is slow. The kernel in `narrow.cpp` reads
weights as they lie. Measured with torch 2.13 on two cores with AVX2, matrices from memory, in microseconds:

    columns                       8        16        32        64
    960 x 576       MKL         629       516       743     1,237
                    here        284       311       552     1,095
    49,152 x 576    MKL      25,134    24,393    27,721    36,899
                    here      9,274    10,129    14,983    26,370

It is compiled, in a quarter of a second, where `kernels.compile_kernels` is on. Used in inference mode alone: it has no
gradients. Products in bfloat16 are left to oneDNN.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.models import kernels, native

MOST_COLUMNS = 64  # up to which it was measured to be faster
_VECTOR = 8  # columns are filled up to a multiple of this
_SOURCE = Path(__file__).with_suffix(".cpp")


@cache
def _kernel() -> Callable[..., None] | None:
    """Compile the kernel; None, and a warning, if that cannot be done."""
    # Not linked with OpenMP: its functions come from the library that torch has loaded, and its threads too.
    library = native.library(_SOURCE, "-fopenmp", otherwise="decoding goes on with torch's products")
    if library is None:
        return None
    function: Any = library.narrow_product
    function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 5 + [ctypes.c_int]
    function.restype = None
    return function  # type: ignore[no-any-return]


def _usable(matrix: Tensor, x: Tensor) -> bool:
    """Whether the kernel, which checks nothing, can multiply them; of what does not fit, torch says why."""
    return (
        kernels.compiling()
        and torch.is_inference_mode_enabled()
        and matrix.dtype == x.dtype == torch.float32
        and matrix.device.type == x.device.type == "cpu"
        and matrix.shape[1] == x.shape[0]
        and matrix.is_contiguous()
        and x.shape[1] <= MOST_COLUMNS
        and _kernel() is not None
    )


def times(matrix: Tensor, x: Tensor) -> Tensor:
    """Return matrix (m, k) @ x (k, n)."""
    if not _usable(matrix, x):
        return matrix @ x
    filled = _filled(x)
    out = filled.new_empty(len(matrix), filled.shape[1])
    _multiply(matrix, filled, out)
    return out[:, : x.shape[1]]


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """Return layer(x), (n, m), of few rows x (n, k)."""
    if type(layer) is not nn.Linear or not _usable(layer.weight, x.T):
        return layer(x)  # type: ignore[no-any-return]
    filled = _filled(x.T)
    out = filled.new_empty(filled.shape[1], len(layer.weight))
    _multiply(layer.weight, filled, out.T)
    out = out[: len(x)]
    return out if layer.bias is None else out.add_(layer.bias)


def _filled(x: Tensor) -> Tensor:
    """Columns (k, n) without gaps, with zeros behind them up to a multiple of 8."""
    missing = -x.shape[1] % _VECTOR
    return nn.functional.pad(x, (0, missing)) if missing else x.contiguous()


def _multiply(matrix: Tensor, x: Tensor, out: Tensor) -> None:
    function = _kernel()
    assert function is not None
    sizes = *matrix.shape, x.shape[1], *out.stride()
    function(matrix.data_ptr(), x.data_ptr(), out.data_ptr(), *sizes, torch.get_num_threads())
