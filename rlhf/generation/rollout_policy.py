"""The weights that the sampler decodes with.

Training wants float32 masters, adapters beside their matrices and, under ZeRO-3, weights spread over processes.
Decoding wants one plain module. Where the two differ, a copy is kept for decoding and refreshed once an iteration:
the policy's adapter merged, weights gathered, trunk in the compute precision. The output layer stays float32, and is
the policy's own where that is one whole matrix.
"""

import copy
from typing import Any

import torch
from torch import nn

from rlhf.errors import ModelError
from rlhf.launch.deepspeed import gathered_parameters
from rlhf.launch.runtime import Runtime
from rlhf.policies import head


class RolloutPolicy:
    """Gives the sampler a plain module that answers as the policy does now."""

    def __init__(self, policy: nn.Module, runtime: Runtime) -> None:
        _refuse_unmergeable(policy)
        self.policy = policy
        self.dtype = torch.bfloat16 if runtime.bf16 else None
        self._copy: Any = None
        self._renewed: set[str] = set()  # weights that every refresh writes

    def refresh(self) -> nn.Module:
        """Return the module to decode with, brought up to date."""
        sharded = any(hasattr(parameter, "ds_id") for parameter in self.policy.parameters())
        if not (self.dtype or sharded or hasattr(self.policy, "get_base_model")):
            return self.policy
        source = head.unwrapped(self.policy)
        fresh = self._copy is None
        if fresh:
            self._copy = _empty_like(source, self.dtype)
            if not sharded:
                _share_output_layer(source, self._copy)
        target = dict(self._copy.named_parameters(remove_duplicate=False))
        with torch.no_grad():
            for name, module in source.named_modules():
                self._renewed |= _copy_weights(module, name, target, frozen_too=fresh)
        return self._copy  # type: ignore[no-any-return]

    def release(self) -> None:
        """Free the memory of the weights that the next refresh writes; nothing can be decoded until then."""
        if self._copy is not None:
            for name in self._renewed:
                weight = self._copy.get_parameter(name)
                weight.data = weight.new_empty(0)


def _refuse_unmergeable(policy: Any) -> None:
    """Adapters are merged into the copy as W + delta; refuse those that are more than that."""
    for name, config in getattr(policy, "peft_config", {}).items():
        more = [key for key in ("modules_to_save", "trainable_token_indices", "use_dora") if getattr(config, key, None)]
        if more:
            raise ModelError(
                f"adapter {name!r} has {more[0]}, which rollouts cannot merge: use plain LoRA, or train all weights"
            )


def _copy_weights(module: Any, name: str, target: dict[str, torch.Tensor], *, frozen_too: bool) -> set[str]:
    """Copy what changed of one module; a matrix and its adapter are summed in float32 before they are rounded.

    Returns:
        The weights that change in training.
    """
    adapted = name.endswith(".base_layer")  # its matrix was written with its adapter, by the layer around it
    name = name.removesuffix(".base_layer")
    if hasattr(module, "get_delta_weight"):  # peft's adapted layers
        # A layer may have adapters of other roles only: those are not in use here.
        present = {adapter for key in module.adapter_layer_names for adapter in getattr(module, key)}
        own = [adapter for adapter in module.active_adapters if adapter in present]
        with gathered_parameters(list(module.parameters())):
            delta = sum(module.get_delta_weight(adapter).float() for adapter in own)
            _write(target[f"{name}.weight"], module.get_base_layer().weight.float() + delta)
        return {f"{name}.weight"}
    weights = [
        (f"{name}.{key}", weight)
        for key, weight in module.named_parameters(recurse=False)
        if f"{name}.{key}" in target
        and target[f"{name}.{key}"] is not weight
        and (frozen_too or weight.requires_grad)
        and not (adapted and key == "weight")
    ]
    if weights:
        with gathered_parameters([weight for _, weight in weights]):
            for key, weight in weights:
                _write(target[key], weight)
    return {key for key, weight in weights if weight.requires_grad}


def _write(target: torch.Tensor, weight: torch.Tensor) -> None:
    if target.shape != weight.shape:  # it was released
        target.data = weight.new_empty(weight.shape, dtype=target.dtype)
    target.copy_(weight)


def _empty_like(source: Any, dtype: torch.dtype | None) -> nn.Module:
    """Build a model of the same architecture, on the same device, with its output layer apart from its embedding."""
    config = copy.deepcopy(source.config)
    config.tie_word_embeddings = False
    device = next(source.parameters()).device
    with torch.random.fork_rng(), torch.device(device):  # initial weights are overwritten: spend no randomness on them
        model: nn.Module = type(source)(config)
    own_dtype = next(source.parameters()).dtype
    model.requires_grad_(False)
    for parameter in model.parameters():  # buffers stay: rounded rotary frequencies would turn far positions
        parameter.data = parameter.data.to(dtype or own_dtype)
    head.output_layer(model).to(own_dtype)
    return model.eval()


def _share_output_layer(source: Any, copied: Any) -> None:
    """Let the copy read the policy's own output layer, of the same precision, if that is one plain matrix."""
    own: Any = head.output_layer(source)
    if type(own) is nn.Linear:
        layer: Any = head.output_layer(copied)
        layer.weight, layer.bias = own.weight, own.bias
