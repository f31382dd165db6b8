"""Running the blocks of a Llama on packed rows by `fused`, instead of through transformers' modules.

Used in training and scoring on a CPU. Llama, Mistral and Qwen2 trunks are recognised, with plain weights or one LoRA
adapter a matrix; everything else (other families, weights sharded by ZeRO-3, activation checkpointing, dropout, hooks
on modules) goes through the modules as ever, with the same numbers.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaModel, MistralModel, Qwen2Model

from rlhf.cpu import fused, kernels, native_attention, native_blocks
from rlhf.cpu.attention import causal_attention, turned_heads
from rlhf.cpu.fused import FeedForward, Heads
from rlhf.cpu.projections import Projection
from rlhf.packing.packed import PackedRows, evened

Keep = Callable[[int, Tensor, Tensor], Any]
_FAMILIES = (LlamaModel, MistralModel, Qwen2Model)
EVENED = frozenset({torch.bfloat16})  # oneDNN multiplies it, see `PackedRows.evened`; MKL multiplies the others


def can_run(trunk: Any) -> bool:
    """Whether `run` gives what the trunk itself would give."""
    if type(trunk) not in _FAMILIES or trunk.embed_tokens.weight.device.type != "cpu" or trunk.gradient_checkpointing:
        return False
    config = trunk.config
    slides = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    dropout = trunk.training and config.attention_dropout
    sharded = hasattr(trunk.embed_tokens.weight, "ds_id")
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in trunk.modules())
    return config.hidden_act == "silu" and not (slides or dropout or sharded or hooked) and all(
        _is_plain(layer) for block in trunk.layers for layer in _matrices(block)
    )  # fmt: skip


def _matrices(block: Any) -> tuple[nn.Module, ...]:
    attention, feed_forward = block.self_attn, block.mlp
    return (
        attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj,
        feed_forward.gate_proj, feed_forward.up_proj, feed_forward.down_proj,
    )  # fmt: skip


def _are_matrices(block: Any) -> bool:
    """Whether no layer of a block has an adapter, on or off."""
    return all(type(layer) is nn.Linear for layer in _matrices(block))


def _is_plain(layer: Any) -> bool:
    """Whether a layer is one matrix, or one with one plain LoRA adapter."""
    if type(layer) is nn.Linear:
        return True
    if not hasattr(layer, "lora_A") or type(layer.get_base_layer()) is not nn.Linear:
        return False
    if layer.disable_adapters or layer.merged or not layer.active_adapters:
        return True
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    return len(names) <= 1 and not any(
        layer.lora_variant.get(name) is not None
        or layer.lora_bias.get(name)
        or (layer.training and getattr(layer.lora_dropout[name], "p", 0.0))
        for name in names
    )


def epsilon(norm: Any) -> Any:
    """Read what transformers' norms and torch's call differently."""
    return norm.eps if type(norm) is nn.RMSNorm else norm.variance_epsilon


def _projection(layer: Any) -> Projection:
    if type(layer) is nn.Linear:
        return Projection(layer.weight, layer.bias, None, None, 0.0)
    base = layer.get_base_layer()
    names = [] if layer.disable_adapters or layer.merged else [n for n in layer.active_adapters if n in layer.lora_A]
    if not names:
        return Projection(base.weight, base.bias, None, None, 0.0)
    return Projection(
        base.weight, base.bias, layer.lora_A[names[0]].weight, layer.lora_B[names[0]].weight, layer.scaling[names[0]]
    )


def blocks(trunk: Any) -> list[tuple[Heads, FeedForward]]:
    """Return the weights of all blocks of what `can_run` said yes to."""
    found = []
    for block in trunk.layers:
        query, key, value, output, gate, up, down = map(_projection, _matrices(block))
        before, behind = block.input_layernorm, block.post_attention_layernorm
        found.append((
            Heads(before.weight, epsilon(before), block.self_attn.head_dim, query, key, value),
            FeedForward(output, behind.weight, epsilon(behind), gate, up, down),
        ))  # fmt: skip
    return found


def _attended(
    products: Tensor, cos: Tensor, sin: Tensor, rows: PackedRows, queries: int, size: int, keep: Any
) -> Tensor:
    """What `projections` makes of tokens, (n, (H + 2 K) * d), to what they find, (n, H * d)."""
    dtype, wide = products.dtype, queries * size
    query, key, value = torch.split(products, [wide, *[(products.shape[1] - wide) // 2] * 2], 1)
    if native_attention.can_run(dtype, size, rows):
        if keep is not None:
            turned = kernels.rotate(key.view(len(key), -1, size), cos, sin, dtype)
            keep(rows.split_heads(turned), rows.split_heads(value.view(len(value), -1, size)))
        return native_attention.attention(products, cos, sin, rows, queries, size)
    query, key, value = turned_heads(query, key, value, cos, sin, rows, size)
    if keep is not None:
        keep(key, value)
    return causal_attention(query, key, value, rows, dtype)


def run(trunk: Any, rows: PackedRows, read: Tensor, keep: Keep | None = None) -> Tensor:
    """Return the hidden states (t, D) of some tokens of packed rows, in the precision of the embeddings or better.

    Of the other tokens the last block computes keys and values alone. Matrix products are in bfloat16 where autocast
    says so, else in the precision of the weights.

    Args:
        trunk: What `can_run` said yes to.
        rows: n tokens.
        read: (t,) which of them.
        keep: Is given the number of each block, its keys, turned, and its values, (b, K, l, d).
    """
    lowered = torch.is_autocast_enabled("cpu")
    with torch.autocast("cpu", enabled=False):
        dtype, layers = torch.bfloat16 if lowered else trunk.embed_tokens.weight.dtype, blocks(trunk)
        # Blocks with adapters that are off are run like those with adapters that do nothing yet: to the bit.
        compiled = all(map(_are_matrices, trunk.layers)) and all(native_blocks.can_run(*of, dtype) for of in layers)
        by, even = native_blocks if compiled else fused, dtype in EVENED and not compiled
        rows = rows.evened if even else rows
        x = trunk.embed_tokens(rows.input_ids)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        angles = trunk.rotary_emb(x, rows.positions[None])
        cos, sin = (part[0, :, None, : part.shape[-1] // 2].contiguous() for part in angles)
        for number, (heads, layer) in enumerate(layers):
            products, queries = by.projections(x, heads, dtype), len(heads.query.weight) // heads.size
            attended = _attended(products, cos, sin, rows, queries, heads.size, partial(keep, number) if keep else None)
            if number + 1 == len(layers):  # a token that several rows share may be read for each of them
                wanted, places = torch.unique(read, return_inverse=True)
                wanted = evened(wanted) if even else wanted
                x, attended = x.index_select(0, wanted), attended.index_select(0, wanted)
            x = by.block_output(x, attended, layer, dtype)
        return fused.norm(x, trunk.norm.weight, epsilon(trunk.norm)).index_select(0, places)
