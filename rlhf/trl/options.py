"""Which options act, which are refused, and which only draw a warning: every one is in one of three groups.

An option that is left at its default is never mentioned. One that nobody here knows, of an older or newer transformers,
draws a warning that says so: nothing is ignored in silence.
"""

import dataclasses
import warnings
from collections.abc import Iterator
from typing import Any

from transformers.trainer_pt_utils import AcceleratorConfig

from rlhf.launch.rank import is_main_process

ACTS = frozenset(
    # The loop; `translate` says which key of section `ppo` each one is.
    """
    advantage bootstrap_truncated cliprange cliprange_value critic critic_learning_rate entropy_coefficient gamma
    gradient_accumulation_steps kl_coef kl_controller kl_estimator kl_horizon kl_target lam learning_rate
    local_rollout_forward_batch_size max_grad_norm max_prompt_length max_steps microbatch_tokens min_response_length
    missing_eos_penalty missing_stop_action missing_stop_value num_mini_batches num_ppo_epochs num_train_epochs
    per_device_train_batch_size response_length reward_weights samples_per_prompt seed stop_strings stop_token
    stop_token_id temperature top_k top_p total_episodes vf_coef weight_decay whiten_advantages whiten_rewards
    """.split()
    # Optimizer and schedule, which transformers makes.
    + """
    adam_beta1 adam_beta2 adam_epsilon lr_scheduler_kwargs lr_scheduler_type optim optim_args warmup_ratio warmup_steps
    """.split()
    # Where and how it computes; the processes' own settings are read by transformers.
    + """
    activation_checkpointing activation_checkpointing_kwargs bf16 compile_kernels ddp_backend ddp_timeout deepspeed
    full_determinism gradient_checkpointing gradient_checkpointing_kwargs local_rank tf32 use_cpu
    """.split()
    # Logs, checkpoints, the Hub.
    + """
    disable_tqdm hub_always_push hub_model_id hub_private_repo hub_revision hub_strategy hub_token log_level
    log_level_replica log_on_each_node logging_dir logging_first_step logging_steps logging_strategy
    num_sample_generations output_dir per_device_eval_batch_size project push_to_hub report_to run_name save_only_model
    save_steps save_strategy save_total_limit trackio_bucket_id trackio_space_id trackio_static_space_id
    """.split()
    # Follow from others: accepted where they agree.
    + """
    batch_size local_batch_size local_mini_batch_size micro_batch_size mini_batch_size num_total_batches world_size
    """.split()
    # For the script, which reads them itself.
    + "dataset_num_proc do_eval do_predict do_train resume_from_checkpoint reward_model_path sft_model_path".split()
)  # fmt: skip

_EVALUATION = "leave it out: responses to eval_dataset are printed (num_sample_generations), nothing is evaluated"
_COMPILE = "leave it out; on a CPU compile_kernels makes common decoders faster"
_MEMORY = "leave it out; gradient_checkpointing or a DeepSpeed config saves memory"

REFUSED = {  # they would change the result, or are asked for because something depends on them -> the way out
    "auto_find_batch_size": "leave it out; microbatch_tokens bounds the memory of a pass without changing the result",
    "data_seed": "leave it out: seed rules the order of prompts, the noise of responses and the minibatches",
    "ds3_gather_for_generation": "leave it out: weights are gathered one at a time for a copy to sample with",
    "enable_jit_checkpoint": "leave it out, and save more often: save_steps",
    "eval_on_start": _EVALUATION,
    "eval_strategy": _EVALUATION,
    "fp16": "set bf16, which needs no loss scaling",
    "fsdp": "leave it out; a DeepSpeed config (deepspeed) spreads models over processes",
    "fsdp_config": "leave it out; a DeepSpeed config (deepspeed) spreads models over processes",
    "group_by_length": "leave it out: microbatches are sorted by length anyway",
    "label_smoothing_factor": "leave it out: PPO has no labels",
    "liger_kernel_config": _COMPILE,
    "load_best_model_at_end": "leave it out, and load the checkpoint of your choice",
    "model_adapter_name": "leave it out, and make the adapter that is to be trained the active one",
    "neftune_noise_alpha": "leave it out: with noise the ratio of a policy to itself is not 1",
    "optim_target_modules": "leave it out; peft_config trains a part of the policy",
    "parallelism_config": "leave it out; a DeepSpeed config (deepspeed) spreads models over processes",
    "ref_adapter_name": "give ref_model; without it the reference is the policy with its adapters switched off",
    "restore_callback_states_from_checkpoint": "leave it out: callbacks start anew when a run is resumed",
    "save_on_each_node": "leave it out, and save to a folder that all machines share",
    "torch_compile": _COMPILE,
    "torch_compile_backend": _COMPILE,
    "torch_compile_mode": _COMPILE,
    "train_sampling_strategy": "leave it out: prompts come in a fresh order in every pass",
    "use_liger_kernel": _COMPILE,
}

_NO_LOADER = "prompts are read once, before training: there is no loader to configure"
_NO_DDP = "Accelerate's defaults for data parallelism are used"
_NO_EVALUATION = "nothing is evaluated during training"

WARNED = {  # harmless: the result would be the same -> why nothing happens
    "accelerator_config": _NO_LOADER,
    "average_tokens_across_devices": "losses are always divided by the tokens of all processes",
    "batch_eval_metrics": _NO_EVALUATION,
    "bf16_full_eval": _NO_EVALUATION,
    "dataloader_drop_last": "an iteration that reaches the end of the data goes on in the next pass",
    "dataloader_in_order": _NO_LOADER,
    "dataloader_multiprocessing_context": _NO_LOADER,
    "dataloader_num_workers": _NO_LOADER,
    "dataloader_persistent_workers": _NO_LOADER,
    "dataloader_pin_memory": _NO_LOADER,
    "dataloader_prefetch_factor": _NO_LOADER,
    "ddp_broadcast_buffers": _NO_DDP,
    "ddp_bucket_cap_mb": _NO_DDP,
    "ddp_find_unused_parameters": _NO_DDP,
    "ddp_static_graph": _NO_DDP,
    "debug": "the debugging aids of transformers' Trainer are not run",
    "eval_accumulation_steps": _NO_EVALUATION,
    "eval_delay": _NO_EVALUATION,
    "eval_do_concat_batches": _NO_EVALUATION,
    "eval_steps": _NO_EVALUATION,
    "eval_use_gather_object": _NO_EVALUATION,
    "fp16_full_eval": _NO_EVALUATION,
    "greater_is_better": _NO_EVALUATION,
    "ignore_data_skip": "a resumed run knows its place in the data without reading up to it",
    "include_for_metrics": _NO_EVALUATION,
    "include_num_input_tokens_seen": "ppo/response_tokens is logged",
    "label_names": "PPO has no labels",
    "length_column_name": "lengths are counted",
    "logging_nan_inf_filter": "numbers are logged as they are",
    "metric_for_best_model": _NO_EVALUATION,
    "prediction_loss_only": _NO_EVALUATION,
    "remove_unused_columns": "all columns are kept: reward functions read them",
    "skip_memory_metrics": "memory is not measured",
    "torch_empty_cache_steps": "the cache of the device is left alone",
    "use_cache": "sampling has a cache of its own, training needs none",
}

_GRADIENT_HOOKS = ("adalomo", "apollo", "galore", "lomo")  # they step inside the backward pass, or want other groups


def check_options(args: Any) -> None:
    """Warn of options that are set without acting, and refuse those that would change the result.

    Args:
        args: A dataclass of options, before transformers fills in what was not set.

    Raises:
        ValueError: Names every option that is refused, what was received, and the way out.
    """
    chosen = {
        field.name: getattr(args, field.name) for field in dataclasses.fields(args) if not _at_default(args, field)
    }
    refused = [
        f"{name} is {chosen[name]!r}, which does not work here: {REFUSED[name]}" for name in chosen if name in REFUSED
    ]
    refused += _wrong_values(args)
    if refused:
        raise ValueError("\n".join(refused))
    idle = [name for name in chosen if name not in ACTS]
    if idle and is_main_process():
        known = [f"{name} ({WARNED[name]})" for name in idle if name in WARNED]
        unknown = [f"{name} (not known to this version of rlhf)" for name in idle if name not in WARNED]
        warnings.warn(f"these options have no effect: {', '.join(known + unknown)}", stacklevel=4)


def _wrong_values(args: Any) -> Iterator[str]:
    """Options that act, with a value that does not."""
    if args.kl_estimator != "k1":
        yield (
            f"kl_estimator is {args.kl_estimator!r}; only k1 is allowed: k3 in the reward has a wrong fixed point, "
            "because its gradient is not that of KL(policy || reference)"
        )
    if args.stop_token not in (None, "eos"):
        yield f"stop_token is {args.stop_token!r}; allowed are 'eos' and None: name another token by stop_token_id"
    elif args.stop_token and args.stop_token_id is not None:
        yield "give stop_token or stop_token_id, not both"
    optimizer = str(getattr(args.optim, "value", args.optim))
    if optimizer.startswith(_GRADIENT_HOOKS):
        yield f"optim is {optimizer!r}, which needs hooks in the backward pass: choose another one, e.g. adamw_torch"
    if str(getattr(args.save_strategy, "value", args.save_strategy)) == "best":
        yield "save_strategy is 'best', but nothing is evaluated: choose steps, epoch or no"
    pushed = str(getattr(args.hub_strategy, "value", args.hub_strategy))
    if pushed not in ("end", "every_save"):
        yield f"hub_strategy is {pushed!r}; allowed are every_save and end: checkpoints are not pushed"


def _at_default(args: Any, field: "dataclasses.Field[Any]") -> bool:
    value, default = getattr(args, field.name), field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    if value == default or (field.name in WARNED and not value and not default):  # "" and [] of `debug`
        return True
    if field.name == "include_num_input_tokens_seen":
        return value in (False, "no")  # a command line has the first where it says nothing
    # What transformers fills in itself comes back when options are copied by `dataclasses.replace`.
    if field.name == "fsdp":
        return not value
    if field.name == "fsdp_config":
        return isinstance(value, dict) and not any(value.values())
    if field.name == "dataloader_pin_memory":
        return value is not args.use_cpu
    return field.name == "accelerator_config" and value == AcceleratorConfig()
