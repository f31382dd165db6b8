"""The element-wise parts of a language model, forward and backward, each a function of tensors.

Between the matrix products stand norms, rotations, gates and the softmax over the vocabulary. Run operation by
operation they cost a CPU more time than the products, because every operation reads and writes memory;
`compile_kernels` lets torch.compile make one pass of each function. The formulas are the same either way.

Notation: n tokens, D hidden size, H heads of size d, I width of the feed-forward layer, V tokens of the vocabulary.
"""

import os
import shutil
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

from rlhf.errors import ModelError

_Function = TypeVar("_Function", bound=Callable[..., Any])
_compiling = False


def compile_kernels(enabled: bool) -> None:
    """Choose whether kernels are compiled at their first call, which takes seconds for each; torch keeps the results.

    Raises:
        ModelError: If there is no C++ compiler.
    """
    global _compiling
    if enabled:
        compiler()
    _compiling = enabled


def compiling() -> bool:
    """Whether kernels are compiled."""
    return _compiling


def compiler() -> str:
    """Return the C++ compiler.

    Raises:
        ModelError: There is none.
    """
    for name in (os.environ.get("CXX", "c++"), "g++", "clang++"):
        if found := shutil.which(name):
            return found
    raise ModelError("compile_kernels needs a C++ compiler: install g++ (or name one in CXX), or set it to false")


def _kernel(function: _Function) -> _Function:
    compiled: Any = None

    @wraps(function)
    def call(*arguments: Any) -> Any:
        nonlocal compiled
        if not _compiling or torch.is_inference_mode_enabled():  # decoding's tensors are too small to be worth it
            return function(*arguments)
        if compiled is None:
            compiled = torch.compile(function, dynamic=True, fullgraph=True)
        return compiled(*arguments)

    return call  # type: ignore[return-value]


@_kernel
def rms_norm(x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Compute x / rms(x) * w (Zhang and Sennrich, 2019), (n, D) in `dtype`, and 1 / rms(x), (n, 1)."""
    inverse = (x.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    return (x * inverse * weight).to(dtype), inverse


@_kernel
def add_rms_norm(
    x: Tensor, addend: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute x + addend, and `rms_norm` of that."""
    total = x + addend
    inverse = (total.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    return total, (total * inverse * weight).to(dtype), inverse


@_kernel
def rms_norm_backward(
    grad: Tensor, x: Tensor, inverse: Tensor, weight: Tensor, straight: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients of x (n, D), to which `straight`, that of the residual path, is added, and of the weight (D,)."""
    grad, unit = grad.to(x.dtype), x * inverse
    scaled = grad * weight
    along = (scaled * unit).mean(-1, keepdim=True)
    return straight + (scaled - unit * along) * inverse, (grad * unit).sum(0)


@_kernel
def rotate(x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
    """Rotate the halves of each head (n, H, d) by its position's angles (n, 1, d / 2) (Su et al., 2021)."""
    first, second = x.to(cos.dtype).view(*x.shape[:2], 2, -1).unbind(-2)
    return torch.stack([first * cos - second * sin, second * cos + first * sin], -2).flatten(-2).to(dtype)


@_kernel
def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer, 2020), (n, I)."""
    return torch.nn.functional.silu(gate) * up


@_kernel
def gated_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of gate and up, and silu(gate) * up once more."""
    silu = torch.nn.functional.silu(gate)
    return torch.ops.aten.silu_backward(grad * up, gate), grad * silu, silu * up


@_kernel
def tile_softmax(
    logits: Tensor, columns: Tensor, temperature: float, powers: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what a softmax over the vocabulary needs of some tokens, of scaled logits z = logits / temperature.

    Args:
        logits: (n, tokens); -inf bans a token.
        columns: (n,).
        temperature: See above.
        powers: (n, tokens) Gets exp(z - max z), if it is given.

    Returns:
        max z, the sum of exp(z - max z), and z at `columns`, (n, 1) each.
    """
    scaled = logits / temperature
    # Where every token is banned the peak is the lowest number, and not -inf: -inf - -inf is not a number.
    peak = scaled.amax(-1, keepdim=True).clamp(min=torch.finfo(scaled.dtype).min)
    exponentials = (scaled - peak).exp()
    if powers is not None:
        powers.copy_(exponentials)
    return peak, exponentials.sum(-1, keepdim=True), scaled.gather(-1, columns[:, None])
