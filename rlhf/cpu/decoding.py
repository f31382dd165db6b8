"""Prompts, and then one new token in each of several rows: what a Llama's blocks do in decoding, without autograd.

A step has few tokens and all the weights to read. So tokens are columns here: weights are the left factors of all
products, as they lie in memory. For 8 to 64 tokens of bfloat16 that takes half to nine tenths of the time of x W'.
Where it can, `native_decoding` takes the step in compiled code.

Notation: n rows, D hidden size, H heads of queries and K of keys, d head size.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from rlhf.cpu.fast_trunk import blocks, epsilon, run
from rlhf.cpu.fused import FeedForward, Heads
from rlhf.cpu.native_decoding import NativeBlocks
from rlhf.cpu.projections import Projection
from rlhf.packing.packed import PackedRows


class Decoder:
    """A trunk that decodes token by token; its weights must not change in the meantime.

    Args:
        trunk: What `fast_trunk.can_run` said yes to.
    """

    def __init__(self, trunk: Any) -> None:
        self.trunk = trunk
        self.blocks = [(heads, _joined(heads), layer) for heads, layer in blocks(trunk)]
        self.native = NativeBlocks.of(self.blocks)

    def prefill(self, prompts: PackedRows) -> tuple[Tensor, DynamicCache]:
        """Return the hidden states (b, D) of the last tokens of b prompts, and the keys and values of all of them."""
        count, prefilled = len(prompts.lengths), DynamicCache()

        def keep(number: int, key: Tensor, value: Tensor) -> None:
            prefilled.update(key[:count].to(value.dtype), value[:count], number)

        return run(self.trunk, prompts, prompts.last, keep), prefilled

    def step(self, token_ids: Tensor, positions: Tensor, mask: Tensor, cache: Any) -> Tensor:
        """Return the hidden states (n, D) of the tokens, and put their keys and values into the cache.

        Args:
            token_ids: (n,).
            positions: (n,) where in its row each token stands.
            mask: (n, 1, 1, columns), what is added to scores.
            cache: `SlotCache`, in which the rows' earlier tokens are.
        """
        x = self.trunk.embed_tokens(token_ids)
        wide = torch.promote_types(x.dtype, torch.float32)
        cos, sin = (part[0, :, : part.shape[-1] // 2].to(wide) for part in self.trunk.rotary_emb(x, positions[None]))
        if self.native is not None:
            x = self.native.step(x, cos, sin, cache)
        else:
            x = _run_blocks(self.blocks, x, cos, sin, mask, cache)
        norm = self.trunk.norm
        return nn.functional.rms_norm(x, x.shape[1:], norm.weight.to(wide), epsilon(norm))


def _joined(heads: Heads) -> Projection:
    """Queries, keys and values as one projection with adapters merged: one product takes half the time of three."""
    parts = (heads.query, heads.key, heads.value)
    biases = [by.bias for by in parts if by.bias is not None]  # of all three, or of none
    return Projection(torch.cat([_merged(by) for by in parts]), torch.cat(biases) if biases else None, None, None, 0.0)


def _merged(by: Projection) -> Tensor:
    return by.weight if by.down is None or by.up is None else by.weight + by.scale * (by.up @ by.down)


def _attend(
    products: Tensor, heads: Heads, angles: tuple[Tensor, Tensor], mask: Tensor, cache: Any, number: int
) -> Tensor:
    """Attention of the newest tokens to their rows: (H * d, n), from what `_joined` makes of them, (H + 2 K, d, n)."""
    shared, (cos, sin) = len(heads.key.weight) // heads.size, angles  # K; queries and keys are turned, values are not
    both = products[:-shared].to(cos.dtype)
    turned = torch.addcmul(both * cos, both.roll(heads.size // 2, 1), sin).to(products.dtype).permute(2, 0, 1)
    newest = turned[:, -shared:, None], products[-shared:].permute(2, 0, 1)[:, :, None]
    keys, values = cache.update(*newest, number)  # (n, K, columns, d)
    # Heads that share keys are rows of one here: the mask is the same for all of them.
    query = turned[:, :-shared].reshape(len(keys), keys.shape[1], -1, heads.size).contiguous()
    return nn.functional.scaled_dot_product_attention(query, keys, values, mask).reshape(len(keys), -1).T


def _run_blocks(
    blocks: list[tuple[Heads, Projection, FeedForward]], x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: Any
) -> Tensor:
    """What `NativeBlocks.step` does, by operations of torch; the mask is that of `Decoder.step`."""
    dtype, x = x.dtype, x.T.to(cos.dtype).contiguous()  # (D, n)
    angles = torch.cat([cos, cos], 1).T, torch.cat([-sin, sin], 1).T  # (d, n)
    for number, (heads, joined, layer) in enumerate(blocks):
        products = _project(joined, _rms_norm(x, heads.norm, heads.epsilon, dtype)).view(-1, heads.size, x.shape[1])
        attended = _attend(products, heads, angles, mask, cache, number)
        x = _block_output(x, attended, layer)
    return x.T


def _block_output(x: Tensor, attended: Tensor, layer: FeedForward) -> Tensor:
    """Everything of a block behind attention; see `fused.block_output`."""
    x = x + _project(layer.output, attended)
    normed = _rms_norm(x, layer.norm, layer.epsilon, attended.dtype)
    gated = nn.functional.silu(_project(layer.gate, normed)).mul_(_project(layer.up, normed))
    return x.add_(_project(layer.down, gated))


def _rms_norm(x: Tensor, weight: Tensor, epsilon: float, dtype: torch.dtype) -> Tensor:
    """See `kernels.rms_norm`; here each column is a token."""
    inverse = x.square().mean(0).add_(epsilon).rsqrt_()
    return (x * inverse).mul_(weight[:, None]).to(dtype)


def _project(by: Projection, x: Tensor) -> Tensor:
    """See `projections.Projection`; x is (in, n), the result (out, n)."""
    y = by.weight @ x
    if by.bias is not None:
        y.add_(by.bias[:, None])
    if by.down is not None and by.up is not None:
        y.addmm_(by.up, by.down @ x, alpha=by.scale)
    return y
