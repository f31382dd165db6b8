"""Decoding in compiled code, `decoding.cpp`: prompts, and then one new token in each of several rows, without autograd.

A step has few tokens and all the weights to read, and torch would call a thousand small operations for it. Tokens are
columns here: weights are the left factors of all products, as they lie in memory. The sampler calls `Decoder`, which
takes prompts through `trunk`.

Notation: n rows, D hidden size, H heads of queries and K of keys, d head size.
"""

import ctypes
from ctypes import POINTER, c_bool, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from rlhf.cpu import compiler, trunk
from rlhf.cpu.weights import Block, blocks, epsilon
from rlhf.packing.packed import PackedRows, rounded_up

_SOURCE = Path(__file__).with_name("decoding.cpp")
_COLUMNS = 16  # what numbers of tokens are filled up to, and what a head must be a multiple of


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
def library() -> Any:
    """Compile the code; None, and a warning, if that cannot be done."""
    made = compiler.library(_SOURCE, "-fopenmp")
    if made is None:
        return None
    made.decode.argtypes, made.decode.restype = [POINTER(_Step), POINTER(_Block), c_int64, c_bool, c_int], None
    made.product_float32.argtypes = [c_void_p] * 3 + [c_int64] * 3 + [c_int]
    made.product_float32.restype = None
    return made


def product(weight: Tensor, x: Tensor) -> Tensor | None:
    """Compute x (n, k) @ weight' (k, m), (n, m), for many weights in float32 and few rows of x.

    It has every weight to read and little to compute, at which MKL is slow.

    Returns:
        (n, m); None for what the code cannot run.
    """
    plain = weight.dtype == x.dtype == torch.float32 and weight.device.type == x.device.type == "cpu"
    if not plain or (weight.requires_grad and torch.is_grad_enabled()) or len(weight) % 2 or not weight.is_contiguous():
        return None
    columns = nn.functional.pad(x.T, (0, -len(x) % _COLUMNS)).contiguous()
    out = x.new_empty(columns.shape[1], len(weight))
    library().product_float32(
        weight.data_ptr(), columns.data_ptr(), out.data_ptr(), *weight.shape, len(out), torch.get_num_threads()
    )
    return out[: len(x)]


class _Blocks:
    """All blocks of a trunk, for compiled code; their weights must not change in the meantime."""

    def __init__(self, blocks: list[Block]) -> None:
        first = blocks[0]
        self.dtype = first.input.query.weight.dtype
        self.sizes = {
            "hidden": first.input.query.weight.shape[1],
            "heads": len(first.input.query.weight) // first.input.size,
            "shared": len(first.input.key.weight) // first.input.size,
            "size": first.input.size,
            "inner": len(first.output.gate.weight),
        }
        self._kept: list[Tensor] = []  # what the pointers point to
        self._blocks = (_Block * len(blocks))(*map(self._block, blocks))

    def _block(self, block: Block) -> _Block:
        """Merge adapters into their weights, and queries, keys and values into one matrix."""

        def pointer(tensor: Tensor | None, dtype: torch.dtype) -> int | None:
            if tensor is None:
                return None
            self._kept.append(tensor.to(dtype).contiguous())
            return self._kept[-1].data_ptr()

        biases = [by.bias for by in block.input.projections if by.bias is not None]  # of all three, or of none
        output = block.output
        matrices = {
            "qkv": torch.cat([by.merged() for by in block.input.projections]),
            "output": output.output.merged(), "gate": output.gate.merged(), "up": output.up.merged(),
            "down": output.down.merged(),
        }  # fmt: skip
        vectors = {
            "bias": torch.cat(biases) if biases else None, "norm": block.input.norm, "second_norm": output.norm,
        }  # fmt: skip
        return _Block(
            **{name: pointer(matrix, self.dtype) for name, matrix in matrices.items()},
            **{name: pointer(vector, torch.float32) for name, vector in vectors.items()},
            epsilon=block.input.epsilon,
            second_epsilon=output.epsilon,
        )

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
        library().decode(step, self._blocks, len(self._blocks), self.dtype == torch.bfloat16, torch.get_num_threads())
        return stream[:, :rows].T


class Decoder:
    """A trunk that decodes token by token; its weights must not change in the meantime.

    Args:
        model: A trunk that `trunk.can_run`.
    """

    def __init__(self, model: Any) -> None:
        self.trunk = model
        self._blocks = _Blocks(blocks(model))

    def prefill(self, prompts: PackedRows) -> tuple[Tensor, DynamicCache]:
        """Return the hidden states (b, D) of the last tokens of b prompts, and the keys and values of all of them."""
        prefilled = DynamicCache()

        def keep(number: int, key: Tensor, value: Tensor) -> None:
            prefilled.update(key, value, number)

        return trunk.run(self.trunk, prompts, prompts.last, keep), prefilled

    def step(self, token_ids: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Return the hidden states (n, D) of the tokens, and put their keys and values into the cache.

        Args:
            token_ids: (n,).
            positions: (n,) where in its row each token stands.
            cache: `SlotCache`, in which the rows' earlier tokens are.
        """
        x = self.trunk.embed_tokens(token_ids)
        cos, sin = (part[0, :, : part.shape[-1] // 2] for part in self.trunk.rotary_emb(x, positions[None]))
        x, norm = self._blocks.step(x, cos, sin, cache), self.trunk.norm
        return nn.functional.rms_norm(x, x.shape[1:], norm.weight.float(), epsilon(norm))


def can_run(model: Any) -> bool:
    """Whether a trunk that `trunk.can_run` can be decoded, too."""
    return all(block.input.size % _COLUMNS == 0 for block in blocks(model))
