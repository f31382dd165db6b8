"""AdamW and its schedule, as section `ppo` has them."""

from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from rlhf.config.ppo import PPOSectionConfig
from rlhf.models.shared_trunk import CRITIC, belongs_to
from rlhf.policies.actor_critic import ActorCritic

EPSILON = 1e-5  # of Adam (Huang et al., 2024)


def parameter_groups(
    model: ActorCritic, learning_rate: float, critic_learning_rate: float | None, weight_decay: float
) -> list[dict[str, Any]]:
    """Group the trained parameters by learning rate and decay.

    Biases and the scales of norms are not decayed, as in transformers' Trainer.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            critic = name.startswith("value_model.") or belongs_to(name, CRITIC)
            rate = critic_learning_rate if critic and critic_learning_rate else learning_rate
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    return [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()]


def make_optimizer(settings: PPOSectionConfig, model: ActorCritic) -> torch.optim.Optimizer:
    """Build AdamW (Loshchilov and Hutter, 2019), with the critic's own learning rate if there is one."""
    groups = parameter_groups(model, settings.learning_rate, settings.critic.learning_rate, settings.weight_decay)
    return torch.optim.AdamW(groups, lr=settings.learning_rate, eps=EPSILON, fused=True)


def make_schedule(settings: PPOSectionConfig, optimizer: torch.optim.Optimizer) -> Any:
    """Build the schedule; it moves once an iteration, and linear decay reaches exactly 0 behind the last one."""
    return get_scheduler(
        "linear" if settings.scheduler == "linear" else "constant_with_warmup",
        optimizer,
        num_warmup_steps=settings.warmup_iterations,
        num_training_steps=settings.iterations,
    )
