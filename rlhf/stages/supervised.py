"""What the SFT and the reward-model stage share around their trainers: rows, options, and the training itself.

    read -> training_arguments -> a `PackedTrainer` -> train -> save

The losses are the stages' own, the loop and the optimizer transformers'.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any, TypeVar

import transformers
from torch import nn
from transformers import PretrainedConfig, Trainer

from rlhf.config.model import ModelConfig
from rlhf.config.schema import Config
from rlhf.config.training import SupervisedConfig
from rlhf.data import Splits
from rlhf.errors import ConfigError, StageError
from rlhf.launch.deepspeed import deepspeed_config, forget_zero, full_state
from rlhf.launch.rank import is_main_process
from rlhf.launch.runtime import Runtime
from rlhf.models.load import max_positions
from rlhf.models.precision import round_frozen_matrices
from rlhf.stages.packed_trainer import BestWeights
from rlhf.stages.trained import LOSS, Trained, save
from rlhf.tracking.callback import attach
from rlhf.tracking.tracker import Tracker

__all__ = ["Trained", "check_positions", "report_rows", "save", "store_as_computed", "train", "training_arguments"]

logger = logging.getLogger(__name__)

ArgumentsT = TypeVar("ArgumentsT")


def training_arguments(
    arguments_class: Callable[..., ArgumentsT],
    config: Config,
    section: SupervisedConfig,
    runtime: Runtime,
    *,
    validate: bool,
    output_dir: str,
    **own: Any,
) -> ArgumentsT:
    """Translate a stage's section into the options of its trainer.

    Args:
        arguments_class: TRL's config class of the trainer.
        config: The whole configuration.
        section: The stage's section.
        runtime: Of the model that is trained; bfloat16 means autocast over float32 weights.
        validate: Whether there are validation rows.
        output_dir: Where the trainer may write; nothing in it is kept.
        own: Options that only this trainer has.
    """
    microbatch = section.microbatch_size or max(1, section.batch_size // runtime.world_size)
    accumulation = section.batch_size // (microbatch * runtime.world_size)
    arguments = arguments_class(
        output_dir=output_dir,
        seed=config.seed,
        per_device_train_batch_size=microbatch,
        per_device_eval_batch_size=microbatch,
        gradient_accumulation_steps=accumulation,
        **_optimisation(section, {option.name for option in fields(arguments_class)}),  # type: ignore[arg-type]
        eval_strategy="no" if not validate else "steps" if section.evaluate_every_steps else "epoch",
        eval_steps=section.evaluate_every_steps,
        bf16=runtime.bf16,
        use_cpu=runtime.device.type == "cpu",
        deepspeed=deepspeed_config(
            config.distributed,
            bf16=runtime.bf16,
            max_gradient_norm=section.max_gradient_norm,
            microbatch_size=microbatch,
            accumulation_steps=accumulation,
        ),
        ddp_find_unused_parameters=False,
        average_tokens_across_devices=True,  # a token weighs the same in every process
        max_length=None,  # rows that are too long were refused when they were read
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is not a number is shown as such
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **own,
    )
    arguments._n_gpu = int(runtime.device.type == "cuda")  # type: ignore[attr-defined]  # one GPU for each process
    return arguments


def train(trainer: Trainer, tracker: Tracker, stage: str, section: SupervisedConfig) -> Trained:
    """Train, validate on the way, and return the best weights; every process must call this.

    Raises:
        StageError: The loss did not stay a number.
    """
    attach(trainer, tracker, stage)
    callback = BestWeights(section.early_stopping_patience)
    trainer.add_callback(callback)
    trainer.train()
    result = callback.best
    if trainer.args.eval_strategy == "no":
        result = Trained(full_state(trainer.model, trainable_only=True), best_step=trainer.state.global_step)
    elif not math.isfinite(result.metrics[LOSS]):
        raise StageError(
            f"{stage}: the validation loss was never a finite number. Lower {stage}.learning_rate "
            f"({section.learning_rate}), or set {stage}.warmup_fraction"
        )
    result.steps = trainer.state.global_step
    forget_zero()
    return result


def store_as_computed(model: nn.Module, settings: ModelConfig, config: Config, runtime: Runtime) -> None:
    """Store the frozen matrices under adapters in bfloat16 where they are multiplied in it; ZeRO wants one dtype."""
    if runtime.bf16 and settings.lora is not None and config.distributed.zero is None:
        round_frozen_matrices(model)


def check_positions(stage: str, section: SupervisedConfig, model_config: PretrainedConfig) -> None:
    """Refuse rows longer than the model has positions for, before any is read.

    Raises:
        ConfigError: `max_tokens` is larger than that.
    """
    positions = max_positions(model_config)
    if positions is not None and section.max_tokens > positions:
        raise ConfigError(
            f"{stage}.max_tokens {section.max_tokens}: the model reads {positions} tokens; lower it to that"
        )


def report_rows(stage: str, rows: Splits[Any]) -> None:
    """Say how many rows go where, and which was the first that was left out; the manifest keeps the numbers."""
    if is_main_process():
        print(f"{stage}: {rows.summary()}", flush=True)
        for message in list(rows.examples.values())[:1]:
            logger.warning("%s: the first row that was left out: %s", stage, message)


def _optimisation(section: SupervisedConfig, known: set[str]) -> dict[str, Any]:
    """Options of the trainer under the names that this version of transformers knows."""
    # transformers 4 has an option of its own for a share of all steps.
    warmup = "warmup_steps" if int(transformers.__version__.partition(".")[0]) >= 5 else "warmup_ratio"
    recompute = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    return {
        "num_train_epochs": section.epochs,
        "max_steps": section.max_steps or -1,
        "optim": "adamw_torch_fused",
        "learning_rate": section.learning_rate,
        "lr_scheduler_type": section.scheduler,
        warmup: section.warmup_fraction,  # below 1 it is a share of all steps
        "weight_decay": section.weight_decay,
        "max_grad_norm": section.max_gradient_norm,
        recompute: section.gradient_checkpointing,
    }
