"""Projections of one input as one: fewer and larger products, whose results lie side by side.

Notation: n tokens, r rank of an adapter.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf.cpu.products import times


class Projection(NamedTuple):
    """Maps x to x W' + b + s (x A') B', W (out, in), A (r, in), B (out, r); bias and adapter may be absent."""

    weight: Tensor
    bias: Tensor | None
    down: Tensor | None
    up: Tensor | None
    scale: float

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """What an autograd function is given; see `Group`."""
        return self.weight, self.bias, self.down, self.up


class Group:
    """Several projections of one input, whose results lie side by side: fewer and larger products.

    Args:
        tensors: `Projection.tensors` of one after the other, in the precision of the products; the first weight may be
            those of all, one below the other, and the others None.
        scales: Of the adapters.
        sizes: How wide each result is.
    """

    def __init__(self, tensors: Sequence[Any], scales: Sequence[float], sizes: Sequence[int]) -> None:
        self.weights = [weight for weight in tensors[0::4] if weight is not None]
        self.small = list(zip(tensors[1::4], tensors[2::4], tensors[3::4], scales, strict=True))
        self.sizes = list(sizes)

    def _of_weights(self, x: Tensor) -> Sequence[Tensor]:
        """The parts of x (n, all sizes) that belong to the weights."""
        return [x] if len(self.weights) == 1 else torch.split(x, self.sizes, 1)

    def project(self, x: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """Return y (n, all sizes) and, for the backward pass, x A' (n, r) of each."""
        y, narrows = x.new_empty(len(x), sum(self.sizes)), []
        for weight, part in zip(self.weights, self._of_weights(y), strict=True):
            times(x, weight.T, part)
        for (bias, down, up, scale), part in zip(self.small, torch.split(y, self.sizes, 1), strict=True):
            if bias is not None:
                part.add_(bias)
            narrow = None if down is None else x @ down.T
            if narrow is not None:
                part.addmm_(narrow, up.T, alpha=scale)
            narrows.append(narrow)
        return y, narrows

    def input_gradient(self, grad: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """Gradient (n, in) of the input, and those (n, r) of x A' of each, from that of y."""
        total, narrow_grads = grad.new_empty(len(grad), self.weights[0].shape[1]), []
        for number, (weight, part) in enumerate(zip(self.weights, self._of_weights(grad), strict=True)):
            times(part, weight, total, add=number > 0)
        for (_, down, up, scale), part in zip(self.small, torch.split(grad, self.sizes, 1), strict=True):
            narrow_grad = None if down is None else (part @ up).mul_(scale)
            if narrow_grad is not None:
                total.addmm_(narrow_grad, down)
            narrow_grads.append(narrow_grad)
        return total, narrow_grads

    def tensor_gradients(
        self,
        x: Tensor,
        grad: Tensor,
        narrows: Sequence[Tensor | None],
        narrow_grads: Sequence[Tensor | None],
        needed: Sequence[bool],
    ) -> list[Tensor | None]:
        """Gradients of `tensors`, weight by weight, None where they are not needed."""
        parts, gradients = torch.split(grad, self.sizes, 1), []
        whole = torch.split(grad.T @ x, self.sizes) if all(needed[0::4]) else None
        for number, (part, narrow, narrow_grad) in enumerate(zip(parts, narrows, narrow_grads, strict=True)):
            weight, bias, down, up = needed[4 * number :][:4]
            gradients += [
                (whole[number] if whole else part.T @ x) if weight else None,
                part.sum(0) if bias else None,
                narrow_grad.T @ x if down and narrow_grad is not None else None,
                (part.T @ narrow).mul_(self.small[number][3]) if up and narrow is not None else None,
            ]
        return gradients


def widths(tensors: Sequence[Any]) -> list[int]:
    """How wide the result of each projection is, from `Projection.tensors` of one after the other."""
    return [len(weight) for weight in tensors[0::4]]


def prepared(tensors: Sequence[Any], dtype: torch.dtype) -> list[Tensor | None]:
    """Bring the tensors of a `Group` to the precision of the products; weights that must be copied become one."""
    sizes, weights = widths(tensors), tensors[0::4]
    if len(weights) == 1 or all(weight.dtype == dtype for weight in weights):
        return _cast(tensors, dtype)
    whole = weights[0].new_empty(sum(sizes), weights[0].shape[1], dtype=dtype)
    for part, weight in zip(torch.split(whole, sizes), weights, strict=True):
        part.copy_(weight)
    small = _cast([tensor if number % 4 else None for number, tensor in enumerate(tensors)], dtype)
    return [whole, *small[1:]]


def _cast(tensors: Sequence[Tensor | None], dtype: torch.dtype) -> list[Tensor | None]:
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]
