"""Several adapters on one frozen trunk, one in use at a time, so that several roles need one backbone in memory.

`adapters.py` puts the policy's own adapter on a model. Here further ones are added to it, written to folders of peft's
standard form and loaded from them. What a role does with its hidden states is not this module's matter.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from hashlib import sha256
from pathlib import Path
from typing import Any

import peft
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME, set_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rlhf.errors import ModelError
from rlhf.launch.deepspeed import gathered_parameters
from rlhf.models.seeding import seeded

CRITIC, REWARD = "critic", "reward"  # the further adapters of a policy
_TRUNK = "trunk"  # the key, in the header of an adapter's file, of the trunk that it was trained on
_SAMPLES = 64  # numbers of each weight that a fingerprint reads


class Adapters:
    """The adapters of a model: which of them is in use.

    peft's own `set_adapter` and `disable_adapter` also take gradients away from all adapters that are not in use, for
    good: weights of another role would silently stop learning. Here nothing but the forward pass changes.

    Args:
        model: With all its adapters on.

    Raises:
        ModelError: The adapters are not in layers (prompt tuning), so that they cannot be switched.
    """

    def __init__(self, model: peft.PeftModel) -> None:
        self._layers: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        if not self._layers:
            raise ModelError(f"adapters of type {model.peft_type} are not in the model's layers: use LoRA")
        self._in_use: list[str] = list(model.active_adapters)

    @contextmanager
    def using(self, *names: str) -> Iterator[None]:
        """Inside, the model runs with these adapters; with none, if no name is given, as the bare trunk."""
        before = self._in_use
        self._use(list(names))
        try:
            yield
        finally:
            self._use(before)

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """For `context_fn` of torch's checkpoint: activations are recomputed with the adapters they were computed with.

        The backward pass recomputes when another adapter may be in use again.
        """
        return nullcontext(), self.using(*self._in_use)

    def _use(self, names: list[str]) -> None:
        self._in_use = names
        for layer in self._layers:
            layer._active_adapter = names


def belongs_to(name: str, adapter: str) -> bool:
    """Whether a parameter of this name is one of the adapter's."""
    return adapter in name.split(".")


def add_twin(model: peft.PeftModel, adapter: str, *, seed: int = 0) -> None:
    """Add a trainable adapter of the same shape as the one in use, without dropout; at first it changes nothing.

    Args:
        model: Changed in place.
        adapter: The name of the new one.
        seed: Draws its first matrix; the second is 0.

    Raises:
        ModelError: The adapter in use is no plain LoRA.
    """
    config = copy.deepcopy(model.active_peft_config)
    if not isinstance(config, peft.LoraConfig) or config.bias != "none":
        raise ModelError(
            f"the policy's adapter is {config.peft_type.value} with bias {getattr(config, 'bias', 'none')!r}; only "
            f"LoRA without biases leaves the trunk as it is for a second adapter ({adapter})"
        )
    config.init_lora_weights = True  # other ways change the trunk, or do not start at 0
    config.lora_dropout, config.inference_mode = 0.0, False
    with seeded(seed):
        _add(model, adapter, config, trainable=True)


def save_adapter(
    folder: Path, config: peft.PeftConfig, weights: Mapping[str, Tensor], adapter: str, trunk: str
) -> None:
    """Write an adapter, and what is trained in full with it, as `PeftModel.from_pretrained` expects it.

    Args:
        folder: Where to; made if it is not there.
        config: The adapter's settings.
        weights: Parameters of the model by name, those of other adapters among them or not.
        adapter: The adapter's name in the model.
        trunk: `fingerprint` of the model.
    """
    own = {_plain(name, adapter): weight.contiguous() for name, weight in weights.items() if belongs_to(name, adapter)}
    settings = copy.copy(config)
    settings.inference_mode = True
    folder.mkdir(parents=True, exist_ok=True)
    settings.save_pretrained(str(folder))
    save_file(own, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt", _TRUNK: trunk})


def load_adapter(model: peft.PeftModel, adapter: str, folder: Path, *, trainable: bool) -> dict[str, Tensor]:
    """Add an adapter that `save_adapter` wrote, without dropout.

    Args:
        model: Changed in place; the adapter in use stays in use.
        adapter: The name that it gets.
        folder: Where it was written.
        trainable: Whether it goes on learning.

    Returns:
        What was trained in full with it, such as a head, by name.

    Raises:
        ModelError: There is no such adapter, or it was trained on another trunk.
    """
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
        with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, "pt") as file:
            trunk = (file.metadata() or {}).get(_TRUNK)
            weights: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"{folder}: no adapter can be loaded from it: {error}") from error
    if trunk != fingerprint(model):
        raise ModelError(
            f"{folder}: this adapter was trained on another trunk than that of the policy, so its numbers would mean "
            "nothing here. Give the model that its training started from, with adapters that are not merged"
        )
    # Its head is the caller's matter: in the policy's model there is no place for it.
    config.modules_to_save, config.inference_mode = None, not trainable
    config.lora_dropout, config.task_type = 0.0, model.active_peft_config.task_type
    _add(model, adapter, config, trainable=trainable)
    own = {name: weight for name, weight in weights.items() if ".lora_" in name}
    result = set_peft_model_state_dict(model, own, adapter_name=adapter)
    missing = [name for name in result.missing_keys if belongs_to(name, adapter)]
    if missing or result.unexpected_keys:
        raise ModelError(f"{folder}: its weights do not fit its settings ({[*missing, *result.unexpected_keys][:3]})")
    return {name: weight for name, weight in weights.items() if name not in own}


def fingerprint(model: nn.Module) -> str:
    """Name a trunk: equal for equal frozen weights, whatever adapters or heads are on them.

    A few numbers of each weight are read, evenly spread and rounded to bfloat16, because a trunk whose frozen matrices
    are stored in it is the same trunk. Every process must call this, and all get the same.

    Args:
        model: A transformers model, with or without LoRA.
    """
    base: Any = model.get_base_model() if isinstance(model, peft.PeftModel) else model
    frozen = {
        name.replace(".base_layer.", "."): weight
        for name, weight in base.base_model.named_parameters()
        if ".lora_" not in name
    }
    digest = sha256()
    for name, weight in sorted(frozen.items()):
        with gathered_parameters([weight]):
            few = weight.detach().flatten()[:: max(1, weight.numel() // _SAMPLES)].to("cpu", torch.bfloat16)
            digest.update(f"{name} {tuple(weight.shape)} ".encode())
            digest.update(few.contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def _add(model: peft.PeftModel, adapter: str, config: peft.PeftConfig, *, trainable: bool) -> None:
    if adapter in model.peft_config:
        raise ModelError(f"the policy has an adapter named {adapter!r} already: rename it, the name is needed here")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.add_adapter(adapter, config)
    for name, parameter in model.named_parameters():
        if belongs_to(name, adapter):
            parameter.requires_grad_(trainable)
    for parameter in trained:  # some versions of peft freeze what was there before
        parameter.requires_grad_(True)


def _plain(name: str, adapter: str) -> str:
    """The name of a parameter in peft's files, which know one adapter only."""
    return ".".join(part for part in name.split(".") if part not in (adapter, "modules_to_save"))
