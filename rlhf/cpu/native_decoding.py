"""Decoding with compiled code, `decoding.cpp`: a step of torch's operations is a thousand small ones.

Compiled where `native.compile_kernels` is on, for Llama's blocks in float32, and in bfloat16 where the processor has
AVX-512 BF16. The same numbers up to rounding; in bfloat16 rounded less often.
"""

import ctypes
from ctypes import POINTER, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.cpu import native
from rlhf.cpu.fused import FeedForward, Heads
from rlhf.cpu.projections import Projection
from rlhf.packing.packed import rounded_up

_SOURCE = Path(__file__).with_name("decoding.cpp")
_COLUMNS, _ROWS = 16, 8  # what numbers of tokens are filled up to, and what numbers of rows of matrices must divide by


class _Block(ctypes.Structure):
    """As `Block` in decoding.cpp."""

    _fields_ = [
        *((name, c_void_p) for name in ("qkv", "output", "gate", "up", "down")),
        *((name, c_void_p) for name in ("bias", "norm", "second_norm", "keys", "values")),
        *((name, c_float) for name in ("epsilon", "second_epsilon")),
    ]


class _Step(ctypes.Structure):
    """As `Step` in decoding.cpp."""

    _fields_ = [
        *((name, c_int64) for name in ("rows", "n", "hidden", "heads", "shared", "size", "inner", "columns")),
        *((name, c_void_p) for name in ("lengths", "cos", "sin", "x", "projected", "scores")),
        *((name, c_void_p) for name in ("normed", "attended", "gated")),
    ]


@cache
def _library() -> Any:
    """Compile the code; None, and a warning, if that cannot be done."""
    library = native.library(_SOURCE, "-fopenmp", otherwise="decoding goes on with torch's operations")
    if library is None:
        return None
    for function in (library.decode_float32, library.decode_bfloat16):
        function.argtypes, function.restype = [POINTER(_Step), POINTER(_Block), c_int64, c_int], None
    library.product_float32.argtypes = [c_void_p] * 3 + [c_int64] * 3 + [c_int]
    library.product_float32.restype = None
    return library


def _available() -> bool:
    return native.compiling() and torch.is_inference_mode_enabled() and _library() is not None


def _call(name: str, *arguments: Any) -> None:
    getattr(_library(), name)(*arguments, torch.get_num_threads())


def linear(layer: nn.Module, x: Tensor) -> Tensor:
    """Return layer(x), (n, m), of x (n, k): a layer in float32 with many weights and few rows of x, by our own product.

    It has every weight to read and little to compute, at which MKL is slow. Two cores with AVX-512, 49,152 x 576 from
    memory, in milliseconds: 13.3 and 5.0 for 16 rows, 28 and 20 for 64.
    """
    weight: Any = getattr(layer, "weight", None)
    if (
        type(layer) is not nn.Linear
        or not (weight.dtype == x.dtype == torch.float32 and weight.device.type == x.device.type == "cpu")
        or weight.shape[1] != x.shape[1]
        or len(weight) % _ROWS
        or not weight.is_contiguous()
        or not _available()
    ):
        return layer(x)  # type: ignore[no-any-return]
    columns = nn.functional.pad(x.T, (0, -len(x) % _COLUMNS)).contiguous()
    out = x.new_empty(columns.shape[1], len(weight))
    _call("product_float32", weight.data_ptr(), columns.data_ptr(), out.data_ptr(), *weight.shape, len(out))
    out = out[: len(x)]
    return out if layer.bias is None else out.add_(layer.bias)


class NativeBlocks:
    """All blocks of a trunk, for compiled code; their weights must not change in the meantime.

    Args:
        blocks: Of each, its heads, queries, keys and values as one projection, and the rest.
    """

    def __init__(self, blocks: list[tuple[Heads, Projection, FeedForward]]) -> None:
        heads, joined, layer = blocks[0]
        self.dtype = joined.weight.dtype
        self.sizes = {
            "hidden": joined.weight.shape[1],
            "heads": len(heads.query.weight) // heads.size,
            "shared": len(heads.key.weight) // heads.size,
            "size": heads.size,
            "inner": len(layer.gate.weight),
        }
        self._kept: list[Tensor] = []  # what the pointers point to
        self._blocks = (_Block * len(blocks))(*(self._block(*parts) for parts in blocks))

    def _block(self, heads: Heads, joined: Projection, layer: FeedForward) -> _Block:
        def pointer(tensor: Tensor | None, dtype: torch.dtype) -> int | None:
            if tensor is None:
                return None
            self._kept.append(tensor.to(dtype).contiguous())
            return self._kept[-1].data_ptr()

        parts = {"qkv": joined, "output": layer.output, "gate": layer.gate, "up": layer.up, "down": layer.down}
        vectors = {"bias": joined.bias, "norm": heads.norm, "second_norm": layer.norm}
        return _Block(
            **{name: pointer(part.weight, self.dtype) for name, part in parts.items()},
            **{name: pointer(vector, torch.float32) for name, vector in vectors.items()},
            epsilon=heads.epsilon,
            second_epsilon=layer.epsilon,
        )

    @classmethod
    def of(cls, blocks: list[tuple[Heads, Projection, FeedForward]]) -> "NativeBlocks | None":
        """Return the blocks for compiled code, or None where that cannot run them."""
        return cls(blocks) if _available() and all(_fits(*parts) for parts in blocks) else None

    def step(self, x: Tensor, cos: Tensor, sin: Tensor, cache: Any) -> Tensor:
        """Take the newest tokens through all blocks, and put their keys and values into the cache.

        Args:
            x: (n, D) embedded tokens, of the cache's first n rows.
            cos: (n, d / 2) of the angle of each token's place in its row, as is sin.
            sin: See cos.
            cache: `SlotCache`, whose rows are prefilled.

        Returns:
            The residual stream behind the last block, (n, D) in float32.
        """
        rows, sizes = len(x), self.sizes
        n = rounded_up(rows, _COLUMNS)
        stream = nn.functional.pad(x.T.float(), (0, n - rows)).contiguous()
        wide = sizes["heads"] * sizes["size"]
        tensors = {
            "lengths": cache.lengths,
            "cos": cos.float().contiguous(),
            "sin": sin.float().contiguous(),
            "x": stream,
            "projected": stream.new_empty(n, wide + 2 * sizes["shared"] * sizes["size"]),
            "scores": stream.new_empty(rows, sizes["heads"], rounded_up(cache.columns, _COLUMNS)),
            "normed": stream.new_empty(sizes["hidden"], n, dtype=self.dtype),
            "attended": stream.new_zeros(wide, n, dtype=self.dtype),  # nothing attends for the columns behind the rows
            "gated": stream.new_empty(sizes["inner"], n, dtype=self.dtype),
        }
        for block, layer in zip(self._blocks, cache.layers, strict=True):
            block.keys, block.values = layer.keys.data_ptr(), layer.values.data_ptr()
        step = _Step(rows=rows, n=n, columns=cache.columns, **sizes, **{k: t.data_ptr() for k, t in tensors.items()})
        _call(
            "decode_bfloat16" if self.dtype == torch.bfloat16 else "decode_float32",
            step,
            self._blocks,
            len(self._blocks),
        )
        return stream[:, :rows].T


def _fits(heads: Heads, joined: Projection, layer: FeedForward) -> bool:
    """Whether the code, which checks nothing, can run a block."""
    weight, others = joined.weight, (layer.output, layer.gate, layer.up, layer.down)
    known = native.computes(_library, weight.dtype)
    even = heads.size % _COLUMNS == 0 and all(len(by.weight) % _ROWS == 0 for by in (joined, *others))
    plain = all(by.bias is None and by.down is None and by.weight.dtype == weight.dtype for by in others)
    return known and even and plain and weight.device.type == "cpu"
