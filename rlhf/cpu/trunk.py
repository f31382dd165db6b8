"""A decoder's trunk on packed rows, block by block in compiled code, instead of through transformers' modules.

Training, scoring and the prompts of the sampler go this way where `can_run` says so at the moment. What it says no to
(other families, weights sharded by ZeRO-3, activation checkpointing, dropout, hooks on modules, odd widths, float64)
goes through the modules; numbers agree up to rounding.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.cpu import blocks
from rlhf.cpu.attention import EVEN, LONGEST, attention
from rlhf.cpu.output_layer import multiplies_bfloat16
from rlhf.cpu.weights import blocks as weights_of
from rlhf.cpu.weights import epsilon, is_readable
from rlhf.packing.packed import PackedRows

Keep = Callable[[int, Tensor, Tensor], None]


def _dtype(trunk: Any) -> torch.dtype:
    """The precision of matrix products: bfloat16 under autocast, else that of the weights."""
    weights: torch.dtype = trunk.embed_tokens.weight.dtype
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weights


def can_run(trunk: Any, longest: int) -> bool:
    """Whether `run` gives what the trunk itself would give.

    Args:
        trunk: A transformers model without its output layer.
        longest: Tokens of the longest row.
    """
    if longest > LONGEST or trunk.embed_tokens.weight.device.type != "cpu" or not is_readable(trunk):
        return False
    dtype = _dtype(trunk)
    if dtype == torch.bfloat16 and not multiplies_bfloat16():
        return False
    return all(block.input.size % EVEN == 0 and blocks.can_run(block, dtype) for block in weights_of(trunk))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the halves of each head (n, H, d) by its position's angles (n, 1, d / 2) (Su et al., 2021)."""
    first, second = x.float().chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def _kept(products: Tensor, cos: Tensor, sin: Tensor, rows: PackedRows, queries: int, size: int) -> list[Tensor]:
    """The keys, rotated, and the values of padded rows, (b, K, l, d), of what `attention_input` makes of tokens."""
    heads = products.view(len(products), -1, size)
    key, value = heads[:, queries:].chunk(2, 1)
    return [rows.pad(heads).transpose(1, 2) for heads in (_rotated(key, cos, sin), value)]


def run(trunk: Any, rows: PackedRows, read: Tensor, keep: Keep | None = None) -> Tensor:
    """Return the hidden states (t, D) of some tokens of packed rows, in float32.

    Of the other tokens the last block computes keys and values alone. Matrix products are in bfloat16 where autocast
    says so, else in the precision of the embeddings.

    Args:
        trunk: What `can_run` said yes to.
        rows: n tokens.
        read: (t,) which of them.
        keep: Is given the number of each block, its keys, rotated, and its values, (b, K, l, d).
    """
    dtype, layers = _dtype(trunk), weights_of(trunk)
    with torch.autocast("cpu", enabled=False):
        x = trunk.embed_tokens(rows.input_ids).float()
        angles = trunk.rotary_emb(x, rows.positions[None])
        cos, sin = (part[0, :, None, : part.shape[-1] // 2].contiguous() for part in angles)
        for number, (before, behind) in enumerate(layers):
            products, queries = blocks.attention_input(x, before, dtype), len(before.query.weight) // before.size
            if keep is not None:
                keep(number, *_kept(products, cos, sin, rows, queries, before.size))
            attended = attention(products, cos, sin, rows, queries, before.size)
            if number + 1 == len(layers):  # a token that several rows share may be read for each of them
                wanted, places = torch.unique(read, return_inverse=True)
                x, attended = x.index_select(0, wanted), attended.index_select(0, wanted)
            x = blocks.block_output(x, attended, behind, dtype)
        norm = trunk.norm
        return nn.functional.rms_norm(x, x.shape[1:], norm.weight.float(), epsilon(norm)).index_select(0, places)
