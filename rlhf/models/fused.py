"""The two halves of a Llama block, forward and backward by hand: few large operations instead of many small ones.

On a CPU a block of transformers spends more time on casts, copies and the calling of small operations than on matrix
products. Here every sum is written once, in the order in which it is needed, and activations stay in the compute
precision between the products; the residual stream and the norms are float32 (float64 for float64 models).

Notation: n tokens, D hidden size, H heads of queries and K of keys, d head size, I width of the feed-forward layer.
Numbers agree with transformers' modules up to rounding; `fast_trunk` decides where they are used.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf.models import kernels
from rlhf.models.products import times


class Projection(NamedTuple):
    """Maps x to x W' + b + s (x A') B', W (out, in), A (r, in), B (out, r); bias and adapter may be absent."""

    weight: Tensor
    bias: Tensor | None
    down: Tensor | None
    up: Tensor | None
    scale: float

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """What an autograd function is given; see `_regroup`."""
        return self.weight, self.bias, self.down, self.up


def _regroup(tensors: Sequence[Any], scales: Sequence[float]) -> list[Projection]:
    """Put the tensors of several projections together again."""
    fours = zip(tensors[0::4], tensors[1::4], tensors[2::4], tensors[3::4], strict=True)
    return [Projection(*four, scale) for four, scale in zip(fours, scales, strict=True)]


def _project(x: Tensor, by: Projection) -> tuple[Tensor, Tensor | None]:
    """Return y (n, out) and, for the backward pass, x A' (n, r)."""
    y = times(x, by.weight.T)
    if by.bias is not None:
        y.add_(by.bias)
    if by.down is None or by.up is None:
        return y, None
    narrow = x @ by.down.T
    return y.addmm_(narrow, by.up.T, alpha=by.scale), narrow


def _input_gradient(grads: Sequence[Tensor], projections: Sequence[Projection]) -> tuple[Tensor, list[Tensor | None]]:
    """Gradient (n, in) of an input that several projections read, and those (n, r) of x A' for each of them."""
    total: Tensor | None = None
    narrow_grads: list[Tensor | None] = []
    for grad, by in zip(grads, projections, strict=True):
        total = times(grad, by.weight, total)
        narrow_grad = None
        if by.down is not None and by.up is not None:
            narrow_grad = (grad @ by.up).mul_(by.scale)
            total.addmm_(narrow_grad, by.down)
        narrow_grads.append(narrow_grad)
    assert total is not None
    return total, narrow_grads


def _tensor_gradients(
    x: Tensor, grad: Tensor, narrow: Tensor | None, narrow_grad: Tensor | None, scale: float, needed: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of the four tensors of a projection of x, None where they are not needed."""
    weight, bias, down, up = needed
    return [
        grad.T @ x if weight else None,
        grad.sum(0) if bias else None,
        narrow_grad.T @ x if down and narrow_grad is not None else None,
        (grad.T @ narrow).mul_(scale) if up and narrow is not None else None,
    ]


def _cast(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


def _restored(grads: Sequence[Tensor | None], dtypes: Sequence[torch.dtype | None]) -> list[Tensor | None]:
    """Return gradients in the precision of what they are gradients of."""
    return [None if grad is None else grad.to(dtype) for grad, dtype in zip(grads, dtypes, strict=True)]


def _dtypes(tensors: Sequence[Tensor | None]) -> list[torch.dtype | None]:
    return [None if tensor is None else tensor.dtype for tensor in tensors]


class Heads(NamedTuple):
    """What turns the residual stream into queries, keys and values."""

    norm: Tensor  # (D,)
    epsilon: float
    size: int  # d
    query: Projection
    key: Projection
    value: Projection


class FeedForward(NamedTuple):
    """What follows attention: its output projection, and the gated feed-forward layer behind a norm."""

    output: Projection
    norm: Tensor  # (D,)
    epsilon: float
    gate: Projection
    up: Projection
    down: Projection


class _Projections(torch.autograd.Function):
    """See `projections`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype, epsilon: float, scales: Sequence[float], norm: Tensor,
                *tensors: Tensor | None) -> tuple[Tensor, ...]:  # fmt: skip
        ctx.scales, ctx.dtypes = scales, _dtypes(tensors)
        x, norm, cast = x.detach(), norm.detach(), _cast(tensors, dtype)
        normed, inverse = kernels.rms_norm(x, norm, epsilon, dtype)
        products = [_project(normed, by) for by in _regroup(cast, scales)]
        ctx.save_for_backward(x, norm, normed, inverse, *(narrow for _, narrow in products), *cast)
        return tuple(product for product, _ in products)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, norm, normed, inverse, *rest = ctx.saved_tensors
        narrows, cast = rest[:3], rest[3:]
        of_heads, needed = _regroup(cast, ctx.scales), ctx.needs_input_grad[5:]
        normed_grad, narrow_grads = _input_gradient(grads, of_heads)
        of_tensors: list[Tensor | None] = []
        for number, by in enumerate(of_heads):
            of_tensors += _tensor_gradients(
                normed, grads[number], narrows[number], narrow_grads[number], by.scale, needed[4 * number :][:4]
            )
        x_grad, norm_grad = kernels.rms_norm_backward(normed_grad, x, inverse, norm, None)
        return x_grad, None, None, None, norm_grad, *_restored(of_tensors, ctx.dtypes)


class _BlockOutput(torch.autograd.Function):
    """See `block_output`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, attended: Tensor, dtype: torch.dtype, epsilon: float, scales: Sequence[float],
                norm: Tensor, *tensors: Tensor | None) -> Tensor:  # fmt: skip
        ctx.dtype, ctx.scales, ctx.dtypes = dtype, scales, _dtypes(tensors)
        x, norm, cast = x.detach(), norm.detach(), _cast(tensors, dtype)
        output, gate, up, down = _regroup(cast, scales)
        attended_output, narrow_output = _project(attended, output)
        middle, normed, inverse = kernels.add_rms_norm(x, attended_output, norm, epsilon, dtype)
        gates, narrow_gate = _project(normed, gate)
        ups, narrow_up = _project(normed, up)
        result, narrow_down = _project(kernels.gated(gates, ups), down)
        narrows = (narrow_output, narrow_gate, narrow_up, narrow_down)
        ctx.save_for_backward(attended, norm, middle, normed, inverse, gates, ups, *narrows, *cast)
        return middle + result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        attended, norm, middle, normed, inverse, gates, ups, *rest = ctx.saved_tensors
        narrows, cast = rest[:4], rest[4:]
        output, gate, up, down = _regroup(cast, ctx.scales)
        down_grad = grad.to(ctx.dtype)
        gated_grad, (narrow_down,) = _input_gradient([down_grad], [down])
        gates_grad, ups_grad, gated = kernels.gated_backward(gated_grad, gates, ups)
        normed_grad, (narrow_gate, narrow_up) = _input_gradient([gates_grad, ups_grad], [gate, up])
        middle_grad, norm_grad = kernels.rms_norm_backward(normed_grad, middle, inverse, norm, grad)
        output_grad = middle_grad.to(ctx.dtype)
        attended_grad, (narrow_output,) = _input_gradient([output_grad], [output])
        of_tensors: list[Tensor | None] = []
        for number, (entered, left, narrow_grad) in enumerate((
            (attended, output_grad, narrow_output),
            (normed, gates_grad, narrow_gate),
            (normed, ups_grad, narrow_up),
            (gated, down_grad, narrow_down),
        )):  # fmt: skip
            needed = ctx.needs_input_grad[6 + 4 * number :][:4]
            of_tensors += _tensor_gradients(entered, left, narrows[number], narrow_grad, ctx.scales[number], needed)
        return middle_grad, attended_grad, None, None, None, norm_grad, *_restored(of_tensors, ctx.dtypes)


def projections(x: Tensor, heads: Heads, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Norm and projections of one block.

    Args:
        x: The residual stream, (n, D).
        heads: Weights.
        dtype: Of the matrix products, and of the result.

    Returns:
        Queries (n, H * d), keys (n, K * d) and values (n, K * d).
    """
    of_heads = (heads.query, heads.key, heads.value)
    tensors = [tensor for by in of_heads for tensor in by.tensors]
    scales = [by.scale for by in of_heads]
    result: tuple[Tensor, Tensor, Tensor] = _Projections.apply(  # type: ignore[no-untyped-call]
        x, dtype, heads.epsilon, scales, heads.norm, *tensors
    )
    return result


def block_output(x: Tensor, attended: Tensor, layer: FeedForward, dtype: torch.dtype) -> Tensor:
    """Everything of a block behind attention, both residual sums included.

    Args:
        x: The residual stream before the block, (n, D).
        attended: (n, H * d), in `dtype`.
        layer: Weights.
        dtype: Of the matrix products.

    Returns:
        The residual stream behind the block, (n, D).
    """
    projections = (layer.output, layer.gate, layer.up, layer.down)
    tensors = [tensor for by in projections for tensor in by.tensors]
    scales = [by.scale for by in projections]
    result: Tensor = _BlockOutput.apply(  # type: ignore[no-untyped-call]
        x, attended, dtype, layer.epsilon, scales, layer.norm, *tensors
    )
    return result
