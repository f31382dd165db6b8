"""LoRA: putting low-rank adapters on a model, and merging them so that a saved folder is a plain model again.

After `load.py`, before and after a stage's training. Checkpoints inside a stage are not this module's matter.
"""

import warnings
from pathlib import Path
from typing import Any, Literal, cast

import peft
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from rlhf.config.model import LoraConfig
from rlhf.errors import ModelError
from rlhf.files.atomic import written_folder
from rlhf.models.quiet import quiet
from rlhf.models.seeding import seeded


def add_adapters(
    model: PreTrainedModel,
    config: LoraConfig,
    task: Literal["language_model", "reward_model"],
    *,
    seed: int = 0,
    dropout: bool = True,
) -> peft.PeftModel:
    """Freeze a model and put trainable adapters on its linear layers (Hu et al., 2021). At first they change nothing.

    Args:
        model: From `load_policy` or `load_sequence_classifier`; its modules are replaced in place.
        config: The `lora` section.
        task: A reward model's head is trained in full next to the adapters.
        seed: Draws the adapters' first matrix; the second is 0.
        dropout: False leaves the configured dropout out, as PPO needs it.

    Raises:
        ModelError: If `target_modules` names no layer of the model, or `top_layers` exceeds its blocks.
    """
    settings = peft.LoraConfig(
        task_type=peft.TaskType.CAUSAL_LM if task == "language_model" else peft.TaskType.SEQ_CLS,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout if dropout else 0.0,
        target_modules=_targets(model, config),
        layers_to_transform=_top_layers(model, config.top_layers),
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2 stores (in, out)
    )
    with seeded(seed):
        return wrap(model, settings)


def wrap(model: torch.nn.Module, settings: peft.PeftConfig) -> peft.PeftModel:
    """Put adapters on a model by peft's own settings."""
    with warnings.catch_warnings():
        # peft asks transformers for a property under its old name; nothing a user could do about it
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        return cast(peft.PeftModel, peft.get_peft_model(model, settings))


def merge_and_save(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> PreTrainedModel:
    """Add the adapters, if there are any, into the weights and write a folder that plain `from_pretrained` loads.

    The folder appears whole or not at all; an earlier one of that name is replaced.

    Args:
        model: A model with or without adapters. Its adapters are merged in place and gone afterwards.
        tokenizer: Saved next to it.
        folder: Where to.

    Returns:
        The model without adapters.
    """
    merged = cast(PreTrainedModel, model.merge_and_unload() if isinstance(model, peft.PeftModel) else model)
    with written_folder(Path(folder)) as unfinished, quiet():
        merged.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
    return merged


def _targets(model: PreTrainedModel, config: LoraConfig) -> list[str]:
    """Last parts of the names of adapted layers, e.g. `q_proj`.

    `all-linear` is spelt out here: peft would turn it into full names, for which it ignores layers_to_transform.
    """
    linear = {name for name, module in model.base_model.named_modules() if isinstance(module, torch.nn.Linear | Conv1D)}
    known = sorted({name.rpartition(".")[2] for name in linear})
    if config.target_modules == "all-linear":
        return known
    for wanted in config.target_modules:
        if not any(f".{name}".endswith(f".{wanted}") for name in linear):
            raise ModelError(
                f"model.lora.target_modules: the model has no linear layer {wanted!r}; it has {', '.join(known)}"
            )
    return list(config.target_modules)


def _top_layers(model: PreTrainedModel, count: int | None) -> list[int] | None:
    available: Any = model.config.get_text_config().num_hidden_layers
    if count is None:
        return None
    if count > available:
        raise ModelError(
            f"model.lora.top_layers {count}: the model has {available} blocks; allowed are 1 to {available}"
        )
    return list(range(available - count, available))
