"""Activation checkpointing (Chen et al., 2016): activations are recomputed in the backward pass, to save memory."""

from typing import Any

from peft import PeftModel

from rlhf.errors import ModelError
from rlhf.policies.actor_critic import ActorCritic, AdapterCritic, SharedCritic


def recompute_activations(actor_critic: ActorCritic, options: dict[str, Any] | None = None) -> None:
    """Let the trunks of policy and critic recompute their activations, block by block.

    Args:
        actor_critic: Changed in place.
        options: Of torch's `checkpoint`; by default without reentering.

    Raises:
        ModelError: The options do not go with a critic that is an adapter on the policy's trunk.
    """
    options = {"use_reentrant": False, **(options or {})}
    if isinstance(actor_critic.value_model, AdapterCritic):
        if options["use_reentrant"]:
            raise ModelError("gradient_checkpointing_kwargs: use_reentrant true does not go with critic 'adapter'")
        # The backward pass recomputes when another adapter may be in use again.
        options["context_fn"] = actor_critic.adapters.checkpoint_contexts
    for model in (actor_critic.policy, actor_critic.value_model):
        if model is not None and not isinstance(model, SharedCritic):
            _enable(model, options)


def _enable(model: Any, options: dict[str, Any]) -> None:
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(options)
    if isinstance(model, PeftModel):
        model.enable_input_require_grads()
