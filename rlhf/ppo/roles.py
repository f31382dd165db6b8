"""The models of a PPO run in their roles, and how they are made ready for it."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass

from peft import PeftModel
from torch import nn

from rlhf.config.ppo import PPOSectionConfig
from rlhf.errors import ModelError
from rlhf.launch.runtime import Runtime
from rlhf.models.dropout import disable_dropout
from rlhf.models.precision import round_frozen_matrices
from rlhf.policies.actor_critic import ActorCritic
from rlhf.policies.critics import make_critic
from rlhf.ppo.advantages import ESTIMATORS


@dataclass(frozen=True)
class Roles:
    """Who is trained, and against whom.

    Attributes:
        policy: A causal language model, possibly with peft adapters.
        critic: For `critic.type` separate a sequence-classification model with one label; else what `load_critic`
            gives, or None for a new one on the policy's trunk. Not read by estimators without a critic.
        reference: The policy that the KL is measured to. None: the policy with its adapters switched off, or a frozen
            copy of it if it has none.
    """

    policy: nn.Module
    critic: nn.Module | None = None
    reference: nn.Module | None = None


def make_actor_critic(settings: PPOSectionConfig, roles: Roles, runtime: Runtime, *, seed: int) -> ActorCritic:
    """Join policy and critic, with dropout off."""
    critic = None
    if ESTIMATORS[settings.advantage].uses_critic:
        critic = make_critic(settings.critic.type, roles.policy, roles.critic, seed=seed)
    for module in (roles.policy, critic):
        if module is not None:
            disable_dropout(module)
    return ActorCritic(roles.policy, critic, runtime)


def make_reference(roles: Roles) -> nn.Module | None:
    """Return the frozen reference policy; None where it is the policy with its adapters switched off."""
    reference = roles.reference
    if reference is roles.policy:
        raise ModelError("policy and reference are the same object: give a copy, or None to have one made")
    if reference is None:
        if isinstance(roles.policy, PeftModel):
            return None
        reference = copy.deepcopy(roles.policy)
    return reference.requires_grad_(False).eval()


def store_as_computed(policy: nn.Module, frozen: Iterable[nn.Module | None]) -> None:
    """Store what is neither trained nor saved in bfloat16, the precision that it is computed with."""
    adapted = policy if isinstance(policy, PeftModel) else None
    for model in (adapted, *frozen):
        if model is not None:
            round_frozen_matrices(model)
