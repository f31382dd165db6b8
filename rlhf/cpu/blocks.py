"""The two halves of a Llama block in compiled code, `blocks.cpp`: forward and backward, with LoRA adapters and biases.

Called by `trunk`, which puts attention between the halves. Products are in float32, or in bfloat16 where the processor
has AVX-512 BF16; the residual stream, norms and sums are float32. Adapters are not merged into the weights: small
updates would be lost in bfloat16. Frozen weights get no gradient, and none is computed for them.

Notation: n tokens, D hidden size, H heads of queries and K of keys, d head size, I width of the feed-forward layer.
"""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, c_bool, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rlhf.cpu import compiler
from rlhf.cpu.weights import AttentionInput, Block, BlockOutput, Projection

_SOURCE = Path(__file__).with_name("blocks.cpp")
_EVEN = 16  # what widths must divide by; the ranks of adapters are filled up to it
_CHUNKS = (48, 96)  # tokens that a thread takes through all products of a half: of few tokens, and of many
_MANY = 384  # from here on there are enough chunks for every thread, and weights are read half as often


class _Projection(ctypes.Structure):
    """As `Projection` in blocks.cpp."""

    _fields_ = [
        *((name, c_void_p) for name in ("weight", "bias", "down", "up")),
        *((name, c_int64) for name in ("out", "rank")),
        ("scale", c_float),
        *((name, c_void_p) for name in ("narrow", "weight_grad", "down_grad", "up_grad")),
    ]


class _Call(ctypes.Structure):
    """As `Call` in blocks.cpp."""

    _fields_ = [
        *((name, c_int64) for name in ("n", "chunk", "size", "heads", "wide")),
        ("epsilon", c_float),
        *((name, c_void_p) for name in ("norm", "x", "attended", "middle", "inverse", "normed", "both")),
        *((name, c_void_p) for name in ("products", "out", "grad", "x_grad", "norm_grad", "attended_grad")),
        ("parts", _Projection * 4),
    ]


@cache
def library() -> Any:
    """Compile the code; None, and a warning, if that cannot be done."""
    made = compiler.library(_SOURCE, "-fopenmp")
    if made is None:
        return None
    for name in ("attention_input", "attention_input_backward", "block_output", "block_output_backward"):
        function = getattr(made, name)
        function.argtypes, function.restype = [POINTER(_Call), c_bool, c_bool, c_int], None
    return made


def can_run(block: Block, dtype: torch.dtype) -> bool:
    """Whether the code, which checks nothing, can run a block with products in a precision."""
    parts, norms = (*block.input.projections, *block.output.projections), [block.input.norm, block.output.norm]
    precisions = {by.weight.dtype for by in parts}
    if dtype not in (torch.float32, torch.bfloat16) or len(precisions) > 1 or precisions - {torch.float32, dtype}:
        return False
    if {x.dtype for x in norms} != {torch.float32}:
        return False
    if any(by.bias is not None and by.bias.dtype != torch.float32 for by in block.input.projections):
        return False
    if any(by.bias is not None for by in block.output.projections):  # their gradients are not made
        return False
    return all(
        x.device.type == "cpu" and x.is_contiguous() and not any(size % _EVEN for size in x.shape)
        for x in (*(by.weight for by in parts), *norms)
    )


class _Group(NamedTuple):
    """Projections of one half, and what the code is given of them."""

    projections: list[Projection]  # in float32 but for the weights, with ranks filled up
    ranks: list[int]

    @classmethod
    def of(cls, tensors: Sequence[Any], scales: Sequence[float]) -> "_Group":
        """Make it of weight, bias, down and up of one projection after the other."""
        found = []
        for weight, bias, down, up, scale in zip(*(tensors[i::4] for i in range(4)), scales, strict=True):
            if down is not None:
                missing = -len(down) % _EVEN
                down = nn.functional.pad(down.float(), (0, 0, 0, missing)).contiguous()
                up = nn.functional.pad(up.float(), (0, missing)).contiguous()
            found.append(Projection(weight, bias, down, up, scale))
        return cls(found, [0 if by.down is None else len(by.down) for by in found])

    def narrows(self, count: int, like: Tensor) -> Tensor:
        """Make room for the narrow sides of all adapters, (n, r) one behind the other."""
        return like.new_empty(count * sum(self.ranks))

    def described(self, count: int, narrows: Tensor | None, grads: Sequence[Tensor | None] = ()) -> Any:
        """Return what the code is given; `grads` are of weight, down and up of one projection after the other."""
        parts, before = (_Projection * 4)(), 0
        for number, (by, rank) in enumerate(zip(self.projections, self.ranks, strict=True)):
            own = [*grads[3 * number : 3 * number + 3], None, None, None][:3]
            parts[number] = _Projection(
                weight=by.weight.data_ptr(), bias=_pointer(by.bias), down=_pointer(by.down), up=_pointer(by.up),
                out=len(by.weight), rank=rank, scale=by.scale,
                narrow=None if narrows is None or not rank else narrows[count * before :].data_ptr(),
                weight_grad=_pointer(own[0]), down_grad=_pointer(own[1]), up_grad=_pointer(own[2]),
            )  # fmt: skip
            before += rank
        return parts

    def rooms(self, needed: Sequence[bool]) -> list[Tensor | None]:
        """Make room for the gradients of weight, down and up that are needed, one projection after the other."""
        made: list[Tensor | None] = []
        for number, by in enumerate(self.projections):
            for tensor, wanted in ((by.weight, 0), (by.down, 2), (by.up, 3)):
                wants = tensor is not None and needed[4 * number + wanted]
                made.append(torch.empty_like(tensor, dtype=torch.float32) if wants else None)  # type: ignore[arg-type]
        return made


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _restored(grads: Sequence[Tensor | None], tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Return gradients of weights and adapters in the shapes and precisions of these; biases are left out."""
    found: list[Tensor | None] = []
    for number in range(len(grads) // 3):
        weight, down, up = grads[3 * number : 3 * number + 3]
        for grad, tensor in zip((weight, None, down, up), tensors[4 * number :], strict=False):
            if grad is None or tensor is None:
                found.append(None)
            else:
                found.append(grad[tuple(slice(size) for size in tensor.shape)].to(tensor.dtype))
    return found


def _call(name: str, dtype: torch.dtype, group: _Group, parts: Any, norm: Tensor, epsilon: float,
          x: Tensor, **more: Tensor | int | None) -> None:  # fmt: skip
    """Call a function.

    Args:
        name: Its name.
        dtype: Of the products.
        group: Its projections.
        parts: What it is given of them.
        norm: (D,).
        epsilon: Of the norm.
        x: (n, D) float32.
        more: By their names, None for what there is not.
    """
    given = {"n": len(x), "chunk": _chunk(len(x)), "size": x.shape[1], "norm": norm, "x": x, **more}
    call = _Call(
        epsilon=epsilon, parts=parts,
        **{key: y.data_ptr() if isinstance(y, Tensor) else y for key, y in given.items()},
    )  # fmt: skip
    rounded = [precision == torch.bfloat16 for precision in (dtype, group.projections[0].weight.dtype)]
    getattr(library(), name)(call, *rounded, torch.get_num_threads())


def _chunk(tokens: int) -> int:
    return _CHUNKS[tokens >= _MANY]


def _chunks(tokens: int) -> int:
    return -(-tokens // _chunk(tokens))


class _AttentionInput(torch.autograd.Function):
    """See `attention_input`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype, epsilon: float, scales: Sequence[float], keep: bool,
                norm: Tensor, *tensors: Tensor | None) -> Tensor:  # fmt: skip
        group = _Group.of(tensors, scales)
        products = x.new_empty(len(x), sum(len(by.weight) for by in group.projections), dtype=dtype)
        normed, inverse = torch.empty_like(x, dtype=dtype) if keep else None, x.new_empty(len(x))
        narrows = group.narrows(len(x), products) if keep else None
        _call("attention_input", dtype, group, group.described(len(x), narrows), norm, epsilon, x,
              products=products, normed=normed, inverse=inverse)  # fmt: skip
        ctx.epsilon, ctx.scales = epsilon, scales
        ctx.save_for_backward(x, norm, normed, inverse, narrows, *tensors)
        return products

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, norm, normed, inverse, narrows, *tensors = ctx.saved_tensors
        needed, grad = ctx.needs_input_grad[6:], grad.contiguous()
        group = _Group.of(tensors, ctx.scales)
        rooms = group.rooms(needed)
        x_grad, norm_grad = torch.empty_like(x), x.new_empty(_chunks(len(x)), x.shape[1])
        _call("attention_input_backward", grad.dtype, group, group.described(len(x), narrows, rooms), norm,
              ctx.epsilon, x, normed=normed, inverse=inverse, grad=grad, x_grad=x_grad,
              norm_grad=norm_grad)  # fmt: skip
        of_tensors = _restored(rooms, tensors)
        for number, part in enumerate(torch.split(grad, [len(by.weight) for by in group.projections], 1)):
            if needed[4 * number + 1]:
                of_tensors[4 * number + 1] = part.float().sum(0)
        return x_grad, None, None, None, None, norm_grad.sum(0) if ctx.needs_input_grad[5] else None, *of_tensors


class _BlockOutput(torch.autograd.Function):
    """See `block_output`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, attended: Tensor, epsilon: float, scales: Sequence[float], keep: bool,
                norm: Tensor, *tensors: Tensor | None) -> Tensor:  # fmt: skip
        group, dtype, sizes = _Group.of(tensors, scales), attended.dtype, _BlockOutput.sizes(tensors)
        out, inverse, middle = torch.empty_like(x), x.new_empty(len(x)), torch.empty_like(x)
        normed = both = narrows = None
        if keep:
            normed, both = torch.empty_like(x, dtype=dtype), x.new_empty(len(x), 2 * sizes["wide"], dtype=dtype)
            narrows = group.narrows(len(x), attended)
        _call("block_output", dtype, group, group.described(len(x), narrows), norm, epsilon, x, **sizes,
              attended=attended, middle=middle, inverse=inverse, normed=normed, both=both, out=out)  # fmt: skip
        ctx.epsilon, ctx.scales = epsilon, scales
        ctx.save_for_backward(attended, norm, middle, normed, inverse, both, narrows, *tensors)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        attended, norm, middle, normed, inverse, both, narrows, *tensors = ctx.saved_tensors
        group = _Group.of(tensors, ctx.scales)
        rooms, count = group.rooms(ctx.needs_input_grad[6:]), len(grad)
        x_grad, attended_grad = torch.empty_like(middle), torch.empty_like(attended)
        norm_grad = middle.new_empty(_chunks(count), middle.shape[1])
        _call("block_output_backward", attended.dtype, group, group.described(count, narrows, rooms), norm,
              ctx.epsilon, middle, **_BlockOutput.sizes(tensors), attended=attended, middle=middle, normed=normed,
              inverse=inverse, both=both, grad=grad.contiguous(), x_grad=x_grad, norm_grad=norm_grad,
              attended_grad=attended_grad)  # fmt: skip
        for_norm = norm_grad.sum(0) if ctx.needs_input_grad[5] else None
        return x_grad, attended_grad, None, None, None, for_norm, *_restored(rooms, tensors)

    @staticmethod
    def sizes(tensors: Sequence[Any]) -> dict[str, int]:
        return {"heads": tensors[0].shape[1], "wide": len(tensors[4])}


def _given(projections: Sequence[Projection]) -> tuple[list[Tensor | None], list[float]]:
    tensors = [tensor for by in projections for tensor in (by.weight, by.bias, by.down, by.up)]
    return tensors, [by.scale for by in projections]


def _learns(*tensors: Tensor | None) -> bool:
    """Whether there will be a backward pass."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def attention_input(x: Tensor, weights: AttentionInput, dtype: torch.dtype) -> Tensor:
    """Norm and projections before attention.

    Args:
        x: The residual stream, (n, D) float32.
        weights: Of a block that `can_run`.
        dtype: Of the matrix products, and of the result.

    Returns:
        Queries, keys and values side by side, (n, (H + 2 K) * d).
    """
    tensors, scales = _given(weights.projections)
    keep = _learns(x, weights.norm, *tensors)
    result: Tensor = _AttentionInput.apply(  # type: ignore[no-untyped-call]
        x, dtype, weights.epsilon, scales, keep, weights.norm, *tensors
    )
    return result


def block_output(x: Tensor, attended: Tensor, weights: BlockOutput, dtype: torch.dtype) -> Tensor:
    """Everything of a block behind attention, both residual sums included.

    Args:
        x: The residual stream before the block, (n, D) float32.
        attended: (n, H * d), in `dtype`.
        weights: Of a block that `can_run`.
        dtype: Of the matrix products.

    Returns:
        The residual stream behind the block, (n, D).
    """
    tensors, scales = _given(weights.projections)
    keep = _learns(x, attended, weights.norm, *tensors)
    result: Tensor = _BlockOutput.apply(  # type: ignore[no-untyped-call]
        x, attended.to(dtype).contiguous(), weights.epsilon, scales, keep, weights.norm, *tensors
    )
    return result
