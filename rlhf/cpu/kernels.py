"""The element-wise parts of a language model, forward and backward, each a function of tensors.

Between the matrix products stand norms, rotations, gates and the softmax over the vocabulary. Run operation by
operation they cost a CPU more time than the products, because every operation reads and writes memory; where it can,
`native_kernels` makes one pass of each function. The formulas are the same either way.

Notation: n tokens, D hidden size, H heads of size d, I width of the feed-forward layer, v tokens of the vocabulary.
"""

import torch
from torch import Tensor

from rlhf.cpu import native_kernels


def rms_norm(x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Compute x / rms(x) * w (Zhang and Sennrich, 2019), (n, D) in `dtype`, and 1 / rms(x), (n, 1)."""
    if native_kernels.can_run(dtype, others=[x, weight]):
        return native_kernels.rms_norm(x, None, weight, epsilon, dtype)[1:]
    inverse = (x.square().mean(-1, keepdim=True) + epsilon).rsqrt()
    return (x * inverse * weight).to(dtype), inverse


def add_rms_norm(
    x: Tensor, addend: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute x + addend, and `rms_norm` of that."""
    if native_kernels.can_run(dtype, factors=[addend], others=[x, weight]):
        return native_kernels.rms_norm(x, addend, weight, epsilon, dtype)
    total = x + addend
    return total, *rms_norm(total, weight, epsilon, dtype)


def rms_norm_backward(
    grad: Tensor, x: Tensor, inverse: Tensor, weight: Tensor, straight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Gradients of x (n, D), to which `straight`, that of a residual path, is added, and of the weight (D,)."""
    if native_kernels.can_run(grad.dtype, factors=[grad], others=[x, weight, x if straight is None else straight]):
        return native_kernels.rms_norm_backward(grad, x, inverse, weight, straight)
    grad, unit = grad.to(x.dtype), x * inverse
    scaled = grad * weight
    along = (scaled * unit).mean(-1, keepdim=True)
    through = (scaled - unit * along) * inverse
    return through if straight is None else straight + through, (grad * unit).sum(0)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype) -> Tensor:
    """Rotate the halves of each head (n, H, d) by its position's angles (n, 1, d / 2) (Su et al., 2021)."""
    first, second = x.to(cos.dtype).view(*x.shape[:2], 2, -1).unbind(-2)
    return torch.stack([first * cos - second * sin, second * cos + first * sin], -2).flatten(-2).to(dtype)


def gated(both: Tensor) -> Tensor:
    """silu(gate) * up (Shazeer, 2020), (n, I), of gate and up side by side, (n, 2 I)."""
    if native_kernels.can_gate(both):
        return native_kernels.gated(both)
    gate, up = both.chunk(2, 1)
    return torch.nn.functional.silu(gate) * up


def gated_backward(grad: Tensor, both: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of gate and up, side by side as they are, and silu(gate) * up once more."""
    if native_kernels.can_gate(both, grad):
        return native_kernels.gated_backward(grad, both)
    gate, up = both.chunk(2, 1)
    silu = torch.nn.functional.silu(gate)
    return torch.cat([torch.ops.aten.silu_backward(grad * up, gate), grad * silu], 1), silu * up


def tile_softmax(
    logits: Tensor, rows: Tensor, temperature: float, powers: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute what a softmax over the vocabulary needs of some of its tokens, of z = logits / temperature.

    Args:
        logits: (v, n), a column for each token of the rows; -inf bans a token of the vocabulary.
        rows: (n,), one for each column.
        temperature: See above.
        powers: (v, n) Gets exp(z - max z), if it is given.

    Returns:
        max z, the sum of exp(z - max z), and z at `rows`, (n,) each.
    """
    chosen = logits.gather(0, rows[None]).squeeze(0) / temperature
    if native_kernels.can_run(logits.dtype, others=[logits]):
        return *native_kernels.tile_softmax(logits, temperature, powers), chosen
    scaled = logits / temperature
    # Where every token is banned the peak is the lowest number, and not -inf: -inf - -inf is not a number.
    peak = scaled.amax(0).clamp(min=torch.finfo(scaled.dtype).min)
    exponentials = (scaled - peak).exp()
    if powers is not None:
        powers.copy_(exponentials)
    return peak, exponentials.sum(0), chosen
