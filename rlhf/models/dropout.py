"""Switching dropout off, which PPO needs: with it the ratio of a policy to itself is not 1.

Used by `load.py` on every model, and for PPO on adapters that were trained with dropout.
"""

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability of a model to 0, in place: modules, plain numbers, and the config that is saved.

    Some families keep probabilities as numbers in their blocks and hand them to a function (`dropout`, `layerdrop`
    and `attention_dropout` of OPT, `attention_dropout` of Llama), where a search for dropout modules misses them.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        _zero_probabilities(module)
        if isinstance(module, PreTrainedModel):
            _zero_probabilities(module.config)


def _zero_probabilities(owner: nn.Module | PretrainedConfig) -> None:
    for name, value in list(vars(owner).items()):
        if "drop" in name and isinstance(value, float):
            setattr(owner, name, 0.0)
