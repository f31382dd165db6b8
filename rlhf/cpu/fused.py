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

from rlhf.cpu import kernels
from rlhf.cpu.projections import Group, Projection, prepared, widths


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


class _Norm(torch.autograd.Function):
    """See `norm`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        normed, inverse = kernels.rms_norm(x, weight, epsilon, x.dtype)
        ctx.save_for_backward(x, inverse, weight)
        return normed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, inverse, weight = ctx.saved_tensors
        return *kernels.rms_norm_backward(grad.contiguous(), x, inverse, weight, None), None


class _Projections(torch.autograd.Function):
    """See `projections`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype, epsilon: float, scales: Sequence[float], norm: Tensor,
                *tensors: Tensor | None) -> Tensor:  # fmt: skip
        ctx.scales, ctx.sizes, ctx.dtypes = scales, widths(tensors), _dtypes(tensors)
        x, norm, cast = x.detach(), norm.detach(), prepared(tensors, dtype)
        normed, inverse = kernels.rms_norm(x, norm, epsilon, dtype)
        products, narrows = Group(cast, scales, ctx.sizes).project(normed)
        ctx.save_for_backward(x, norm, normed, inverse, *narrows, *cast)
        return products

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, norm, normed, inverse, *rest = ctx.saved_tensors
        group = Group(rest[3:], ctx.scales, ctx.sizes)
        normed_grad, narrow_grads = group.input_gradient(grad)
        of_tensors = group.tensor_gradients(normed, grad, rest[:3], narrow_grads, ctx.needs_input_grad[5:])
        x_grad, norm_grad = kernels.rms_norm_backward(normed_grad, x, inverse, norm, None)
        return x_grad, None, None, None, norm_grad, *_restored(of_tensors, ctx.dtypes)


_GROUPS = slice(0, 1), slice(1, 3), slice(3, 4)  # of `block_output`'s projections: output; gate and up; down


class _BlockOutput(torch.autograd.Function):
    """See `block_output`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, attended: Tensor, dtype: torch.dtype, epsilon: float, scales: Sequence[float],
                norm: Tensor, *tensors: Tensor | None) -> Tensor:  # fmt: skip
        ctx.dtype, ctx.scales, ctx.sizes, ctx.dtypes = dtype, scales, widths(tensors), _dtypes(tensors)
        x, norm = x.detach(), norm.detach()
        cast = [tensor for part in _GROUPS for tensor in prepared(tensors[4 * part.start : 4 * part.stop], dtype)]
        output, gates, down = _BlockOutput._groups(ctx, cast)
        attended_output, narrow_output = output.project(attended)
        middle, normed, inverse = kernels.add_rms_norm(x, attended_output, norm, epsilon, dtype)
        both, narrow_gates = gates.project(normed)
        result, narrow_down = down.project(kernels.gated(both))
        narrows = (*narrow_output, *narrow_gates, *narrow_down)
        ctx.save_for_backward(attended, norm, middle, normed, inverse, both, *narrows, *cast)
        return middle + result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        attended, norm, middle, normed, inverse, both, *rest = ctx.saved_tensors
        narrows, needed = rest[:4], ctx.needs_input_grad[6:]
        output, gates, down = _BlockOutput._groups(ctx, rest[4:])
        down_grad = grad.to(ctx.dtype)
        gated_grad, narrow_down = down.input_gradient(down_grad)
        both_grad, gated = kernels.gated_backward(gated_grad, both)
        normed_grad, narrow_gates = gates.input_gradient(both_grad)
        middle_grad, norm_grad = kernels.rms_norm_backward(normed_grad, middle, inverse, norm, grad)
        output_grad = middle_grad.to(ctx.dtype)
        attended_grad, narrow_output = output.input_gradient(output_grad)
        of_tensors = [
            *output.tensor_gradients(attended, output_grad, narrows[:1], narrow_output, needed[:4]),
            *gates.tensor_gradients(normed, both_grad, narrows[1:3], narrow_gates, needed[4:12]),
            *down.tensor_gradients(gated, down_grad, narrows[3:], narrow_down, needed[12:]),
        ]
        return middle_grad, attended_grad, None, None, None, norm_grad, *_restored(of_tensors, ctx.dtypes)

    @staticmethod
    def _groups(ctx: Any, cast: Sequence[Any]) -> list[Group]:
        return [Group(cast[4 * part.start : 4 * part.stop], ctx.scales[part], ctx.sizes[part]) for part in _GROUPS]


def norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """See `kernels.rms_norm`; in the precision of x (n, D)."""
    result: Tensor = _Norm.apply(x, weight.to(x.dtype), epsilon)  # type: ignore[no-untyped-call]
    return result


def projections(x: Tensor, heads: Heads, dtype: torch.dtype) -> Tensor:
    """Norm and projections of one block.

    Args:
        x: The residual stream, (n, D).
        heads: Weights.
        dtype: Of the matrix products, and of the result.

    Returns:
        Queries, keys and values side by side, (n, (H + 2 K) * d).
    """
    of_heads = (heads.query, heads.key, heads.value)
    tensors = [tensor for by in of_heads for tensor in by.tensors]
    scales = [by.scale for by in of_heads]
    result: Tensor = _Projections.apply(  # type: ignore[no-untyped-call]
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
