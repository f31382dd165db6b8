"""The weights of a decoder's blocks as compiled code takes them, read from transformers' modules at every call.

Llama, Mistral and Qwen2 are recognised, with plain weights or one LoRA adapter a matrix. This file says whether a trunk
is one of these at the moment; whether shapes and precisions suit the code is `blocks`' matter.
"""

from typing import Any, NamedTuple

from torch import Tensor, nn
from transformers import LlamaModel, MistralModel, Qwen2Model

_FAMILIES = (LlamaModel, MistralModel, Qwen2Model)


class Projection(NamedTuple):
    """Maps x to x W' + b + s (x A') B', W (out, in), A (r, in), B (out, r); bias and adapter may be absent."""

    weight: Tensor
    bias: Tensor | None = None
    down: Tensor | None = None
    up: Tensor | None = None
    scale: float = 0.0

    def merged(self) -> Tensor:
        """Return W + s B A."""
        if self.down is None or self.up is None:
            return self.weight
        return self.weight + (self.scale * (self.up @ self.down)).to(self.weight.dtype)


class AttentionInput(NamedTuple):
    """What turns the residual stream into queries, keys and values."""

    norm: Tensor  # (D,)
    epsilon: float
    size: int  # d, of a head
    query: Projection
    key: Projection
    value: Projection

    @property
    def projections(self) -> tuple[Projection, ...]:
        """All three, in the order in which their results lie side by side."""
        return self.query, self.key, self.value


class BlockOutput(NamedTuple):
    """What follows attention: its output projection, and the gated feed-forward layer behind a norm."""

    output: Projection
    norm: Tensor  # (D,)
    epsilon: float
    gate: Projection
    up: Projection
    down: Projection

    @property
    def projections(self) -> tuple[Projection, ...]:
        """All four."""
        return self.output, self.gate, self.up, self.down


class Block(NamedTuple):
    """The two halves of a block, between which attention stands."""

    input: AttentionInput
    output: BlockOutput


def is_known_family(trunk: Any) -> bool:
    """Whether a trunk is of a family whose blocks are known here."""
    return type(trunk) in _FAMILIES and trunk.config.hidden_act == "silu"


def is_readable(trunk: Any) -> bool:
    """Whether its blocks compute what their weights say, at the moment, and nothing more."""
    if not is_known_family(trunk) or trunk.gradient_checkpointing:
        return False
    config = trunk.config
    slides = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    dropout = trunk.training and config.attention_dropout
    sharded = hasattr(trunk.embed_tokens.weight, "ds_id")
    hooked = any(module._forward_hooks or module._forward_pre_hooks for module in trunk.modules())
    return not (slides or dropout or sharded or hooked) and all(
        _is_plain(layer) for block in trunk.layers for layer in _matrices(block)
    )


def _matrices(block: Any) -> tuple[nn.Module, ...]:
    attention, feed_forward = block.self_attn, block.mlp
    return (
        attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj,
        feed_forward.gate_proj, feed_forward.up_proj, feed_forward.down_proj,
    )  # fmt: skip


def _is_plain(layer: Any) -> bool:
    """Whether a layer is one matrix, or one with one plain LoRA adapter."""
    if type(layer) is nn.Linear:
        return True
    if not hasattr(layer, "lora_A") or type(layer.get_base_layer()) is not nn.Linear:
        return False
    names = _adapters(layer)
    return len(names) <= 1 and not any(
        layer.lora_variant.get(name) is not None
        or layer.lora_bias.get(name)
        or (layer.training and getattr(layer.lora_dropout[name], "p", 0.0))
        for name in names
    )


def _adapters(layer: Any) -> list[str]:
    """The adapters of a layer that are in use."""
    if layer.disable_adapters or layer.merged:
        return []
    return [name for name in layer.active_adapters if name in layer.lora_A]


def epsilon(norm: Any) -> float:
    """Read what transformers' norms and torch's call differently."""
    found: Any = norm
    return float(found.eps if type(norm) is nn.RMSNorm else found.variance_epsilon)


def _projection(layer: Any) -> Projection:
    if type(layer) is nn.Linear:
        return Projection(layer.weight, layer.bias)
    base, names = layer.get_base_layer(), _adapters(layer)
    if not names:
        return Projection(base.weight, base.bias)
    name = names[0]
    return Projection(base.weight, base.bias, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name])


def blocks(trunk: Any) -> list[Block]:
    """Return the weights of all blocks of a trunk that `is_readable`."""
    found = []
    for block in trunk.layers:
        query, key, value, output, gate, up, down = map(_projection, _matrices(block))
        before, behind = block.input_layernorm, block.post_attention_layernorm
        found.append(Block(
            AttentionInput(before.weight, epsilon(before), block.self_attn.head_dim, query, key, value),
            BlockOutput(output, behind.weight, epsilon(behind), gate, up, down),
        ))  # fmt: skip
    return found
