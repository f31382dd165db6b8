"""Optimizer and schedule: any that transformers makes from its options, or those that the script gives."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from transformers import Trainer, get_scheduler

from rlhf.policies.actor_critic import ActorCritic
from rlhf.ppo.optimizer import parameter_groups
from rlhf.trl.config import PPOConfig


def optimizer_maker(
    args: PPOConfig, given: torch.optim.Optimizer | None = None
) -> Callable[[ActorCritic], torch.optim.Optimizer]:
    """Return what builds the optimizer that `args.optim` names, or hands out the given one.

    The critic has its own learning rate, if there is one.
    """

    def make(model: ActorCritic) -> torch.optim.Optimizer:
        if given is not None:
            _warn_of_weights_left_out(given, model)
            return given
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
        groups = parameter_groups(model, args.learning_rate, args.critic_learning_rate, args.weight_decay)
        optimizer: torch.optim.Optimizer = kind(groups, **options)
        return optimizer

    return make


def schedule_maker(args: PPOConfig, given: Any = None) -> Callable[[torch.optim.Optimizer, int], Any]:
    """Return what builds the schedule that `args.lr_scheduler_type` names, or hands out the given one.

    It moves once an iteration.
    """

    def make(optimizer: torch.optim.Optimizer, iterations: int) -> Any:
        if given is not None:
            return given
        return get_scheduler(
            args.lr_scheduler_type,
            optimizer,
            num_warmup_steps=args.get_warmup_steps(iterations),
            num_training_steps=iterations,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs,
        )

    return make


def _warn_of_weights_left_out(optimizer: torch.optim.Optimizer, model: ActorCritic) -> None:
    known = {id(weight) for group in optimizer.param_groups for weight in group["params"]}
    left_out = [name for name, weight in model.named_parameters() if weight.requires_grad and id(weight) not in known]
    if left_out:
        warnings.warn(
            f"the optimizer that was given does not train {len(left_out)} weights, e.g. {left_out[0]}", stacklevel=2
        )
