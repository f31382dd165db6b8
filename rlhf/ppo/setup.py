"""What a trainer needs before its first iteration: the models in their roles, the optimizer, the batch arithmetic."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase, Trainer, get_scheduler

from rlhf.cpu.attention import prefer_fast_attention
from rlhf.cpu.native import compile_kernels
from rlhf.episodes.rollout import Lengths
from rlhf.errors import ModelError
from rlhf.models.adapters import wrap
from rlhf.models.dropout import disable_dropout
from rlhf.models.precision import round_frozen_matrices, warn_of_slow_bfloat16
from rlhf.models.shared_trunk import CRITIC, belongs_to
from rlhf.policies import head
from rlhf.policies.actor_critic import ActorCritic, AdapterCritic, SharedCritic
from rlhf.policies.critics import make_critic
from rlhf.ppo.advantages import ESTIMATORS
from rlhf.trl.config import PPOConfig
from rlhf.trl.token_dataset import TokenDatasetSource


def make_lengths(args: PPOConfig, model: Any) -> Lengths:
    """Return the limits of an episode: the configured ones, and what the model's positions allow."""
    return Lengths(
        max_prompt_tokens=args.max_prompt_length or 2**31,
        max_response_tokens=args.response_length,
        min_response_tokens=args.min_response_length,
        max_total_tokens=getattr(head.unwrapped(model).config, "max_position_embeddings", None),
    )


def make_token_source(
    args: PPOConfig, tokenizer: PreTrainedTokenizerBase, lengths: Lengths, dataset: Any, reward_model: Any
) -> TokenDatasetSource:
    """Play the prompts of a tokenised data set, scored by TRL's kind of reward."""
    rewards, weights = reward_list(reward_model, args.reward_weights)
    batch_size = args.local_rollout_forward_batch_size
    return TokenDatasetSource(
        dataset, tokenizer, lengths, rewards, weights, args.stop_strings, batch_size, bf16=bool(args.bf16)
    )


def make_policy(model: nn.Module, peft_config: PeftConfig | None) -> nn.Module:
    """Return the policy, with new adapters if asked for."""
    if peft_config is None:
        return model
    if isinstance(model, PeftModel):
        raise ModelError("the model has adapters already: merge them first, or leave peft_config out")
    policy: nn.Module = wrap(model, peft_config)
    return policy


def make_reference(policy: nn.Module, ref_model: nn.Module | None) -> nn.Module | None:
    """Return the frozen reference policy; None where it is the policy with its adapters switched off."""
    if ref_model is policy:
        raise ModelError("model and ref_model are the same object: give a copy, or None to have one made")
    if ref_model is None:
        if isinstance(policy, PeftModel):
            return None
        ref_model = copy.deepcopy(policy)
    prefer_fast_attention(ref_model)  # as the policy's, so that the first KL is exactly 0
    return ref_model.requires_grad_(False).eval()


def make_actor_critic(args: PPOConfig, policy: Any, value_model: nn.Module | None) -> ActorCritic:
    """Join policy and critic: dropout off, fast attention, activations recomputed if asked for."""
    if not ESTIMATORS[args.advantage].uses_critic:
        value_model = None
    else:
        value_model = make_critic(args.critic, policy, value_model, seed=args.seed)
    for module in (policy, value_model):
        if module is not None:
            disable_dropout(module)
            if not isinstance(module, SharedCritic):
                prefer_fast_attention(module)
    if args.bf16:
        warn_of_slow_bfloat16()
    compile_kernels(args.compile_kernels)
    actor_critic = ActorCritic(policy, value_model, bf16=bool(args.bf16))
    if args.gradient_checkpointing:
        options = dict(args.gradient_checkpointing_kwargs or {"use_reentrant": False})
        if isinstance(value_model, AdapterCritic):
            if options.get("use_reentrant"):
                raise ModelError("gradient_checkpointing_kwargs: use_reentrant true does not go with critic 'adapter'")
            options = {"use_reentrant": False, **options, "context_fn": actor_critic.adapters.checkpoint_contexts}
        for model in (policy, value_model):
            _recompute_activations(model, options)
    return actor_critic


def _recompute_activations(model: Any, options: dict[str, Any]) -> None:
    if model is None or isinstance(model, SharedCritic):
        return
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable(options)
    if isinstance(model, PeftModel):
        model.enable_input_require_grads()


def prepare_frozen(
    args: PPOConfig, actor_critic: ActorCritic, reference: nn.Module | None, reward_model: Any, accelerator: Accelerator
) -> None:
    """Freeze reward modules, and store what nobody trains, nor saves, in the precision that it is computed with."""
    rewards = [module for module in reward_list(reward_model)[0] if isinstance(module, nn.Module)]
    trained = {id(parameter) for parameter in actor_critic.parameters() if parameter.requires_grad}
    for module in rewards:
        disable_dropout(module.to(accelerator.device).eval())
        for parameter in module.parameters():
            if id(parameter) not in trained:
                parameter.requires_grad_(False)
    if args.bf16 and accelerator.distributed_type != "DEEPSPEED":  # which wants all weights in one precision
        adapted = actor_critic.policy if isinstance(actor_critic.policy, PeftModel) else None
        for model in (adapted, reference, *rewards):
            if model is not None:
                round_frozen_matrices(model)


def make_optimizer(args: PPOConfig, model: ActorCritic) -> torch.optim.Optimizer:
    """Build the optimizer that `args.optim` names, with the critic's own learning rate if there is one.

    Biases and the scales of norms are not decayed, as in transformers' Trainer.
    """
    make, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            critic = name.startswith("value_model.") or belongs_to(name, CRITIC)
            rate = args.critic_learning_rate if critic and args.critic_learning_rate else args.learning_rate
            decay = args.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rate, decay), []).append(parameter)
    optimizer: torch.optim.Optimizer = make(
        [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()], **options
    )
    return optimizer


def make_scheduler(args: PPOConfig, optimizer: torch.optim.Optimizer, iterations: int) -> Any:
    """Build the schedule; it moves once an iteration, and linear decay reaches exactly 0 behind the last one."""
    return get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=args.get_warmup_steps(iterations),
        num_training_steps=iterations,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )


def set_batch_sizes(args: PPOConfig, num_prompts: int | None, processes: int) -> None:
    """Fill in the sizes that follow from others, under TRL's names, and refuse those that do not divide.

    batch_size = per_device_train_batch_size * gradient_accumulation_steps * processes episodes make one iteration.
    """
    args.world_size = processes
    args.local_batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps
    args.micro_batch_size = args.per_device_train_batch_size * processes
    args.batch_size = args.local_batch_size * processes
    for name in ("num_mini_batches", "samples_per_prompt"):
        if args.batch_size % getattr(args, name):
            raise ValueError(
                f"{name} is {getattr(args, name)}, which does not divide the {args.batch_size} episodes of an "
                "iteration (per_device_train_batch_size * gradient_accumulation_steps * processes)"
            )
    args.mini_batch_size = args.batch_size // args.num_mini_batches
    args.local_mini_batch_size = args.mini_batch_size // processes
    if args.total_episodes is None:
        if num_prompts is None:
            raise ValueError(
                "total_episodes is not set, and the environment has no number of prompts to derive it from"
            )
        args.total_episodes = int(args.num_train_epochs * num_prompts * args.samples_per_prompt)
    args.num_total_batches = math.ceil(args.total_episodes / args.batch_size)


def stop_token_ids(args: PPOConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the tokens that end a response: the configured one, else EOS."""
    if args.stop_token_id is not None:
        return (args.stop_token_id,)
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has no EOS token: set stop_token_id")
    return (int(tokenizer.eos_token_id),)


def reward_list(reward_model: Any, weights: Sequence[float] | None = None) -> tuple[list[Any], list[float]]:
    """Return rewards and weights as lists; a single module or function is a list of one."""
    if reward_model is None:
        return [], []
    rewards = list(reward_model) if isinstance(reward_model, list | tuple) else [reward_model]
    chosen = list(weights) if weights is not None else [1.0] * len(rewards)
    if len(chosen) != len(rewards):
        raise ValueError(f"reward_weights has {len(chosen)} entries for {len(rewards)} rewards; give one for each")
    return rewards, chosen
