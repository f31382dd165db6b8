"""What bfloat16 compute changes in a model that is about to be trained.

Trainers run it under autocast, so trained weights, their gradients and the optimizer stay float32.
"""

from typing import Any

import torch

from rlhf.config.model import ModelConfig
from rlhf.models.attention import prefer_fast_attention


def prepare_for_training(model: Any, config: ModelConfig, *, sharded: bool) -> None:
    """Make training in the configured precision fast; a float32 model is left as it is.

    Frozen matrices under adapters need no float32 master: they are stored in bfloat16, which spares autocast a cast in
    every pass. Their rounding is that of autocast. Embeddings and the output layer stay float32.

    Args:
        model: With its adapters on, if it gets some; changed in place.
        config: Whose `dtype` and `lora` rule.
        sharded: Whether DeepSpeed will shard the model; it wants all weights in one precision.
    """
    if config.dtype != "bfloat16":
        return
    prefer_fast_attention(model)
    if config.lora is None or sharded:
        return
    apart = {id(layer.weight) for layer in (model.get_input_embeddings(), _output_layer(model)) if layer is not None}
    for parameter in model.parameters():
        if not parameter.requires_grad and parameter.ndim == 2 and id(parameter) not in apart:
            parameter.data = parameter.data.to(torch.bfloat16)


def _output_layer(model: Any) -> Any:
    return getattr(model.get_base_model(), "get_output_embeddings", lambda: None)()
