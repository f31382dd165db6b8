"""What a trainer needs before its loop: the models in their roles, rewards, episodes, recomputed activations."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from rlhf.episodes.lengths import Lengths
from rlhf.errors import ModelError
from rlhf.launch.runtime import Runtime
from rlhf.models.adapters import wrap
from rlhf.models.dropout import disable_dropout
from rlhf.models.load import max_positions
from rlhf.models.precision import round_frozen_matrices
from rlhf.policies.actor_critic import ActorCritic
from rlhf.policies.head import unwrapped
from rlhf.ppo.roles import Roles
from rlhf.ppo.trainer import PPO
from rlhf.trl.config import PPOConfig
from rlhf.trl.optimizer import optimizer_maker, schedule_maker
from rlhf.trl.runtime import to_deepspeed
from rlhf.trl.token_dataset import TokenDatasetSource


def make_roles(
    model: nn.Module, ref_model: nn.Module | None, value_model: nn.Module | None, peft_config: PeftConfig | None
) -> Roles:
    """Put the models into their roles, with new adapters on the policy if asked for."""
    if ref_model is model:
        raise ModelError("model and ref_model are the same object: give a copy, or None to have one made")
    if peft_config is not None:
        if isinstance(model, PeftModel):
            raise ModelError("the model has adapters already: merge them first, or leave peft_config out")
        model = wrap(model, peft_config)
    return Roles(policy=model, critic=value_model, reference=ref_model)


def make_source(
    args: PPOConfig, tokenizer: PreTrainedTokenizerBase, policy: Any, dataset: Any, reward_model: Any, runtime: Runtime
) -> TokenDatasetSource:
    """Play the prompts of a tokenised data set, scored by TRL's kind of reward."""
    rewards, weights = reward_list(reward_model, args.reward_weights)
    lengths = Lengths(
        max_prompt_tokens=args.max_prompt_length or 2**31,
        max_response_tokens=args.response_length,
        min_response_tokens=args.min_response_length,
        max_total_tokens=max_positions(unwrapped(policy).config),
    )
    batch_size = args.local_rollout_forward_batch_size
    return TokenDatasetSource(
        dataset, tokenizer, lengths, rewards, weights, args.stop_strings or (), batch_size, bf16=runtime.bf16
    )


def make_loop(
    args: PPOConfig, optimizers: tuple[torch.optim.Optimizer | None, Any], *, bf16: bool
) -> Callable[..., PPO]:
    """Return what makes the loop, with what the options say beside section `ppo`: seed, DeepSpeed, optimizer, schedule.

    Args:
        args: The options.
        optimizers: An optimizer and a scheduler to use instead of the configured ones.
        bf16: Whether models compute in bfloat16.
    """
    return partial(
        PPO,
        seed=args.seed,
        deepspeed=to_deepspeed(args, bf16=bf16),
        optimizer=optimizer_maker(args, optimizers[0]),
        schedule=schedule_maker(args, optimizers[1]),
    )


def reward_list(reward_model: Any, weights: Sequence[float] | None = None) -> tuple[list[Any], list[float]]:
    """Return rewards and weights as lists; a single module or function is a list of one."""
    if reward_model is None:
        return [], []
    rewards = list(reward_model) if isinstance(reward_model, list | tuple) else [reward_model]
    chosen = list(weights) if weights is not None else [1.0] * len(rewards)
    if len(chosen) != len(rewards):
        raise ValueError(f"reward_weights has {len(chosen)} entries for {len(rewards)} rewards; give one for each")
    return rewards, chosen


def prepare_rewards(reward_model: Any, actor_critic: ActorCritic, device: torch.device, *, bf16: bool) -> None:
    """Freeze reward modules, dropout off; in bfloat16 they are stored as they are computed.

    Args:
        reward_model: What the trainer was given.
        actor_critic: Its trained weights stay trained where a reward module shares them.
        device: Where they run.
        bf16: Whether to store their matrices in bfloat16.
    """
    trained = {id(parameter) for parameter in actor_critic.parameters() if parameter.requires_grad}
    for module in reward_list(reward_model)[0]:
        if not isinstance(module, nn.Module):
            continue
        disable_dropout(module.to(device).eval())
        for parameter in module.parameters():
            if id(parameter) not in trained:
                parameter.requires_grad_(False)
        if bf16:
            round_frozen_matrices(module)
