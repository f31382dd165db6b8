"""From TRL's options to section `ppo`: the one place where TRL's names become ours.

Pydantic validates the section; what it finds is said in TRL's names. Optimizer and schedule, of which transformers has
more than the section, are made by `optimizer`; where to compute is decided in `runtime`.
"""

import copy
import math
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails
from transformers import PreTrainedTokenizerBase

from rlhf.config.ppo import EnvironmentConfig, PPOSectionConfig
from rlhf.errors import ModelError
from rlhf.trl.config import PPOConfig

# Key of section `ppo` -> TRL's name, or ours where TRL has none. What follows from several options is in `to_section`.
NAMES = {
    "advantage": "advantage",
    "bootstrap_truncated": "bootstrap_truncated",
    "clip_range": "cliprange",
    "critic.learning_rate": "critic_learning_rate",
    "critic.type": "critic",
    "entropy_coefficient": "entropy_coefficient",
    "epochs": "num_ppo_epochs",
    "gae_lambda": "lam",
    "gamma": "gamma",
    "kl.coefficient": "kl_coef",
    "kl.controller": "kl_controller",
    "kl.horizon": "kl_horizon",
    "kl.target": "kl_target",
    "learning_rate": "learning_rate",
    "max_gradient_norm": "max_grad_norm",
    "microbatch_tokens": "microbatch_tokens",
    "minibatches": "num_mini_batches",
    "missing_stop.action": "missing_stop_action",
    "missing_stop.value": "missing_stop_value",
    "rollout.batch_size": "local_rollout_forward_batch_size",
    "rollout.max_prompt_tokens": "max_prompt_length",
    "rollout.max_response_tokens": "response_length",
    "rollout.min_response_tokens": "min_response_length",
    "rollout.stop_strings": "stop_strings",
    "rollout.temperature": "temperature",
    "rollout.top_k": "top_k",
    "rollout.top_p": "top_p",
    "samples_per_prompt": "samples_per_prompt",
    "value_clip_range": "cliprange_value",
    "value_coefficient": "vf_coef",
    "weight_decay": "weight_decay",
    "whiten_advantages": "whiten_advantages",
    "whiten_rewards": "whiten_rewards",
}
_LONGEST_PROMPT = 512  # of a source that does not say; only the size of a microbatch depends on it


def to_section(
    args: PPOConfig, num_prompts: int | None, longest_prompt: int | None, processes: int
) -> PPOSectionConfig:
    """Translate the options of the loop.

    Args:
        args: The options.
        num_prompts: Prompts that there are; None if the source makes them up.
        longest_prompt: Tokens of the longest one; None if the source is not a data set.
        processes: Processes of the run.

    Raises:
        ValueError: An option is out of range, or two do not go together.
    """
    names, given = dict(NAMES), {key: getattr(args, name) for key, name in NAMES.items()}
    if longest_prompt is None:  # episodes of any kind, which `environment` describes for the batch arithmetic
        given["environment"] = EnvironmentConfig(id="source")
        longest_prompt = args.max_prompt_length or _LONGEST_PROMPT
    given["rollout.max_prompt_tokens"] = args.max_prompt_length or longest_prompt
    given["rollout.stop_strings"] = list(args.stop_strings or [])
    given["max_gradient_norm"] = args.max_grad_norm or None
    if args.microbatch_tokens is None:
        given["microbatch_tokens"] = args.per_device_train_batch_size * (longest_prompt + args.response_length)
    if args.missing_eos_penalty is not None:
        if args.missing_stop_action != "none":
            raise ValueError(
                f"missing_eos_penalty {args.missing_eos_penalty} and missing_stop_action {args.missing_stop_action!r} "
                "are two answers to a missing stop token: remove one"
            )
        given |= {"missing_stop.action": "subtract", "missing_stop.value": args.missing_eos_penalty}
        names["missing_stop.value"] = "missing_eos_penalty"
    given["episodes_per_iteration"] = _episodes_per_iteration(args, processes)
    given["iterations"] = _iterations(args, num_prompts, given["episodes_per_iteration"])
    try:
        return PPOSectionConfig.model_validate(_nested(given))
    except ValidationError as error:
        problems = [_in_trls_names(each, names) for each in error.errors(include_url=False)]
        raise ValueError("\n".join(problems)) from None


def filled_in(args: PPOConfig, section: PPOSectionConfig, processes: int) -> PPOConfig:
    """Return a copy of the options with the sizes that follow from others, under TRL's names.

    Raises:
        ValueError: One of them was given, and is something else.
    """
    per_device = args.per_device_train_batch_size
    minibatch = section.episodes_per_iteration // section.minibatches
    sizes = {
        "num_total_batches": section.iterations,
        "micro_batch_size": per_device * processes,
        "local_batch_size": section.episodes_per_iteration // processes,
        "batch_size": section.episodes_per_iteration,
        "local_mini_batch_size": minibatch // processes,
        "mini_batch_size": minibatch,
    }
    filled = copy.copy(args)
    for name, size in sizes.items():
        if getattr(args, name) not in (None, size):
            raise ValueError(
                f"{name} is {getattr(args, name)}, but {size} follows from per_device_train_batch_size, "
                "gradient_accumulation_steps, num_mini_batches, total_episodes and the processes: leave it out"
            )
        setattr(filled, name, size)
    if filled.total_episodes is None:
        filled.total_episodes = section.iterations * section.episodes_per_iteration
    return filled


def stop_token_ids(args: PPOConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Return the tokens that end a response: the configured one, else EOS."""
    if args.stop_token_id is not None:
        return (args.stop_token_id,)
    if tokenizer.eos_token_id is None:
        raise ModelError("the tokenizer has no EOS token: set stop_token_id")
    return (int(tokenizer.eos_token_id),)


def _episodes_per_iteration(args: PPOConfig, processes: int) -> int:
    episodes: int = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
    for name in ("num_mini_batches", "samples_per_prompt"):
        parts = getattr(args, name)
        if parts > 0 and episodes % parts:  # what is not positive is refused with its range, by the section
            raise ValueError(
                f"{name} is {parts}, which does not divide the {episodes} episodes of an iteration "
                "(per_device_train_batch_size * gradient_accumulation_steps * processes)"
            )
    if episodes < 1:
        raise ValueError(
            f"per_device_train_batch_size {args.per_device_train_batch_size} and gradient_accumulation_steps "
            f"{args.gradient_accumulation_steps} must be positive: they are the episodes of an iteration"
        )
    return episodes


def _iterations(args: PPOConfig, num_prompts: int | None, episodes_per_iteration: int) -> int:
    if args.max_steps > 0:
        if args.total_episodes is not None:
            raise ValueError(
                f"max_steps {args.max_steps} and total_episodes {args.total_episodes} both say how long to train: "
                "remove one"
            )
        return int(args.max_steps)
    total = args.total_episodes
    if total is None:
        if num_prompts is None:
            raise ValueError(
                "total_episodes is not set, and the source has no number of prompts to derive it from: set it"
            )
        total = int(args.num_train_epochs * num_prompts * args.samples_per_prompt)
    if total < 1:
        raise ValueError(
            f"total_episodes is {total}: it must be positive (without it, num_train_epochs {args.num_train_epochs} "
            "passes over the data are made)"
        )
    return math.ceil(total / episodes_per_iteration)


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn {"kl.target": 6} into {"kl": {"target": 6}}."""
    nested: dict[str, Any] = {}
    for path, value in values.items():
        section, _, key = path.rpartition(".")
        (nested.setdefault(section, {}) if section else nested)[key] = value
    return nested


def _in_trls_names(error: ErrorDetails, names: Mapping[str, str]) -> str:
    """Say what pydantic found: the option by TRL's name, what was received, what is allowed."""
    path = ".".join(part for part in error["loc"] if isinstance(part, str))
    if path in names:
        return f"{names[path]} is {error['input']!r}: {error['msg'].replace('Input should', 'it should')}"
    # Two keys of a section do not go together; the message names them as the section does.
    prefix = f"{path}." if path else ""
    message = str(error["ctx"]["error"]) if "ctx" in error else error["msg"]
    own = {key.removeprefix(prefix): name for key, name in names.items() if key.startswith(prefix)}
    return re.sub(r"\w+", lambda word: own.get(word[0], word[0]), message)
