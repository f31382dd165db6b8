"""The forms of a critic: making, saving and loading them.

    separate   a sequence-classification model of its own        critic/ loads by `from_pretrained`
    shared     a value head on the policy                        critic/value_head.pt
    adapter    a second adapter on the policy's frozen trunk     critic/ is a folder of peft's, and value_head.pt

How a critic is run is `actor_critic`'s matter.
"""

import os
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerBase

from rlhf.errors import ModelError
from rlhf.models.quiet import quiet
from rlhf.models.shared_trunk import CRITIC, add_twin, belongs_to, fingerprint, load_adapter, save_adapter
from rlhf.policies import head
from rlhf.policies.actor_critic import ActorCritic, AdapterCritic, SharedCritic

_HEAD = "value_head.pt"


def make_critic(form: str, policy: Any, given: nn.Module | None, *, seed: int = 0) -> nn.Module:
    """Return the critic of this form.

    Args:
        form: separate, shared or adapter.
        policy: With its own adapter on, if it has one; gets another one for the form adapter.
        given: A model for the form separate; from `load_critic` for the others, which are new without it.
        seed: Draws a new adapter.

    Raises:
        ModelError: The form needs something that is not there, or another form is given.
    """
    if isinstance(given, SharedCritic) and _form(given) != form:
        raise ModelError(f"critic is {form!r}, but value_model is of the form {_form(given)!r}: make them agree")
    if form == "separate":
        if given is None:
            raise ModelError("advantage gae needs a critic: give value_model, or set critic to shared")
        return given
    if isinstance(given, SharedCritic):
        return given
    if form == "shared":
        return _on_device_of(policy, SharedCritic(_hidden_size(policy)))
    if not isinstance(policy, PeftModel):
        raise ModelError(
            "critic is 'adapter', but the policy has no adapter itself: give peft_config or a model with LoRA, or set "
            "critic to separate or shared"
        )
    add_twin(policy, CRITIC, seed=seed ^ 0xC2171C)  # a stream of its own: not the numbers of the policy's adapter
    return _on_device_of(policy, AdapterCritic(_hidden_size(policy), fingerprint(policy)))


def load_critic(folder: str | os.PathLike[str], policy: Any = None) -> nn.Module:
    """Load the critic of an earlier run, of whatever form, to go on with as `value_model`.

    Args:
        folder: The `critic` folder beside a saved policy.
        policy: Whose trunk a shared critic reads, and an adapter critic runs: it gets the adapter. That must be the
            trunk that the earlier run started from, with a LoRA adapter of the policy's on it; not needed otherwise.

    Returns:
        What `PPOTrainer` takes as `value_model`, `critic` being the same form.

    Raises:
        ModelError: There is no critic in the folder, or it does not fit the policy.
    """
    path = Path(folder)
    is_adapter = (path / "adapter_config.json").is_file()
    if not (path / _HEAD).is_file():
        return _load_separate(path)
    if is_adapter and not isinstance(policy, PeftModel):
        raise ModelError(f"{path} has the adapter of a critic: give load_critic the policy with its LoRA adapter")
    if policy is None:
        raise ModelError(f"{path} has the head of a critic that shares the policy's trunk: give load_critic the policy")
    weights = torch.load(path / _HEAD, map_location="cpu", weights_only=True)
    hidden_size = _hidden_size(policy)
    if weights["score.weight"].shape != (1, hidden_size):
        size = weights["score.weight"].shape[1]
        raise ModelError(f"{path}: a critic of width {size}, for a policy of width {hidden_size}: not this policy's")
    critic: nn.Module = SharedCritic(hidden_size)
    if is_adapter:
        load_adapter(policy, CRITIC, path, trainable=True)
        critic = AdapterCritic(hidden_size, fingerprint(policy))
    _on_device_of(policy, critic).load_state_dict(weights)
    return critic


def save_critic(
    actor_critic: ActorCritic, state: dict[str, Any], tokenizer: PreTrainedTokenizerBase, folder: Path
) -> None:
    """Save the critic, if there is one, as `load_critic` expects it.

    Args:
        actor_critic: Whose critic it is.
        state: Its parameters by name, at least those that are trained.
        tokenizer: The policy's, saved beside a critic with a trunk of its own.
        folder: Where to.
    """
    critic: Any = actor_critic.value_model
    if critic is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    if not isinstance(critic, SharedCritic):
        critic.save_pretrained(folder, state_dict=part(state, "value_model."))
        tokenizer.save_pretrained(folder)
        return
    torch.save(part(state, "value_model."), folder / _HEAD)
    if isinstance(critic, AdapterCritic):
        settings = actor_critic.policy.peft_config[CRITIC]  # type: ignore[index]
        save_adapter(folder, settings, part(state, "policy."), CRITIC, critic.trunk)


def part(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Return the weights under a prefix, without it."""
    return {name.removeprefix(prefix): weight for name, weight in state.items() if name.startswith(prefix)}


def policy_part(state: dict[str, Any]) -> dict[str, Any]:
    """Return the policy's own weights, without the critic's adapter."""
    return {name: weight for name, weight in part(state, "policy.").items() if not belongs_to(name, CRITIC)}


def _load_separate(path: Path) -> nn.Module:
    if not (path / "config.json").is_file():
        raise ModelError(f"{path} has no critic: neither config.json nor {_HEAD}. Name the `critic` folder of a run")
    try:
        with quiet():
            model, report = AutoModelForSequenceClassification.from_pretrained(
                path, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"{path}: the critic cannot be loaded: {error}") from error
    if report["missing_keys"] or model.config.num_labels != 1:
        raise ModelError(f"{path} is no critic: a sequence-classification model with one label is needed")
    critic: nn.Module = model
    return critic


def _form(critic: SharedCritic) -> str:
    return "adapter" if isinstance(critic, AdapterCritic) else "shared"


def _hidden_size(policy: Any) -> int:
    return int(head.unwrapped(policy).config.hidden_size)


def _on_device_of(policy: nn.Module, critic: nn.Module) -> nn.Module:
    weight = next(policy.parameters())
    return critic.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
