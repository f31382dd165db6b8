"""The two halves of a causal language model: the trunk, and the output layer that turns hidden states into logits.

PPO needs logits only where the policy chose a token, so `decoder_only` and the sampler call the halves apart. Nothing
here stores logits, and nothing here knows of backends.
"""

from typing import Any

import torch
from torch import Tensor, nn

from rlhf.packing.packed import PackedRows


def unwrapped(policy: Any) -> Any:
    """Return the transformers model inside a peft wrapper; adapters stay active, they live in its layers."""
    return policy.get_base_model() if hasattr(policy, "get_base_model") else policy


def trunk(policy: nn.Module) -> Any:
    """Return everything but the output layer."""
    model = unwrapped(policy)
    return getattr(model, model.base_model_prefix)


def hidden_states(policy: nn.Module, rows: PackedRows, read: Tensor) -> Tensor:
    """Run the trunk as a module over padded rows: the plain way, see `backend` for a faster one.

    No attention mask is needed: attention is causal, so what a real token sees never includes padding behind it.

    Args:
        policy: A causal language model.
        rows: n tokens of any number of rows.
        read: (t,) the tokens whose hidden states are wanted.

    Returns:
        (t, d).
    """
    padded = trunk(policy)(input_ids=rows.pad(rows.input_ids), use_cache=False).last_hidden_state
    return rows.pack(padded)[read]


def output_layer(policy: nn.Module) -> nn.Module:
    """Return the layer that maps (..., d) to (..., V)."""
    layer: nn.Module = unwrapped(policy).get_output_embeddings()
    return layer


def scale_logits(policy: nn.Module, logits: Tensor) -> Tensor:
    """Apply what some families do to logits after the output layer (Gemma 2, Cohere, Granite)."""
    config = unwrapped(policy).config
    if softcap := getattr(config, "final_logit_softcapping", None):
        logits = torch.tanh(logits / softcap) * softcap
    if factor := getattr(config, "logit_scale", None):
        logits = logits * factor
    if divisor := getattr(config, "logits_scaling", None):
        logits = logits / divisor
    return logits


def is_plain(policy: nn.Module) -> bool:
    """Whether the logits are exactly `hidden @ weight.T + bias` with a weight that is whole on this process."""
    layer = output_layer(policy)
    config = unwrapped(policy).config
    scaled = any(getattr(config, key, None) for key in ("final_logit_softcapping", "logit_scale", "logits_scaling"))
    return type(layer) is nn.Linear and not scaled and not hasattr(layer.weight, "ds_id")
