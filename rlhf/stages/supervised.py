"""What the SFT and the reward-model stage share: training with TRL's trainers, validation, best weights, saving.

    training_arguments -> a trainer with `Validation` -> train -> save

Rows come tokenised and losses are TRL's. Replaced is how the trainers validate: transformers averages over batches and
repeats rows to fill the last one, so that its numbers depend on batch size and processes; ours do not.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from rlhf.config.model import ModelConfig
from rlhf.config.schema import Config
from rlhf.config.training import SupervisedConfig
from rlhf.data import Splits
from rlhf.errors import ConfigError, StageError
from rlhf.launch.deepspeed import barrier, deepspeed_config, forget_zero, full_state, is_main_process, world_size
from rlhf.launch.runtime import Runtime
from rlhf.models.adapters import merge_and_save
from rlhf.tracking.callback import attach
from rlhf.tracking.tracker import Tracker

__all__ = ["Trained", "Validation", "check_positions", "report_skipped", "save", "train", "training_arguments"]

logger = logging.getLogger(__name__)

ArgumentsT = TypeVar("ArgumentsT")

_LOSS = "eval_loss"  # transformers' name of the validation loss


@dataclass
class Trained:
    """What a training leaves.

    Attributes:
        weights: The trained parameters with the lowest validation loss (the last ones if nothing validates), by name
            and on the CPU; empty on all processes but the first.
        metrics: The validation that goes with them, under transformers' names; empty if nothing validates.
        steps: Optimizer steps that were taken.
        best_step: The step that the weights are from.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    best_step: int = 0


class Validation:
    """Makes a Trainer validate exactly: mixed in before it, with `measure` and `summarise` of the stage."""

    def measure(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """What is to be known of a batch: (rows of the batch, numbers), or one row of sums."""
        raise NotImplementedError

    def summarise(self, measured: Tensor) -> dict[str, float]:
        """Metrics, under transformers' names, of all that was measured: (N, numbers) in float64."""
        raise NotImplementedError

    @torch.no_grad()
    def evaluation_loop(self: Any, dataloader: Any, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Measure all validation rows once; the Trainer calls this, logs the result and goes on training."""
        model = self.model_wrapped
        model.eval()
        measured = []
        for batch in dataloader:
            # Rows that were repeated to fill the last batch of the last process are dropped here.
            measured.append(self.accelerator.gather_for_metrics(self.measure(model, batch)).cpu())
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        metrics = self.summarise(torch.cat(measured).double())
        return EvalLoopOutput(None, None, metrics, len(dataloader.dataset))


class BestWeights(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Keeps a copy of the trained parameters whenever the validation loss falls, and stops when it no longer does.

    Args:
        patience: Stop after this many validations without improvement; None never stops.
    """

    def __init__(self, patience: int | None) -> None:
        self.best = Trained(metrics={_LOSS: math.inf})
        self._patience = patience
        self._waited = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Asks for a last validation, so that the last weights have their chance."""
        if args.eval_strategy == "steps" and state.global_step >= state.max_steps:
            control.should_evaluate = True

    def on_evaluate(
        self, args: Any, state: Any, control: Any, model: Any, metrics: dict[str, float], **kwargs: Any
    ) -> None:
        """Compares; all processes see the same metrics and so decide alike."""
        if metrics[_LOSS] < self.best.metrics[_LOSS]:
            weights = full_state(model, trainable_only=True)
            self.best = Trained(weights, dict(metrics), best_step=state.global_step)
            self._waited = 0
            return
        self._waited += 1
        if self._patience is not None and self._waited >= self._patience:
            control.should_training_stop = True


def training_arguments(
    arguments_class: Callable[..., ArgumentsT],
    config: Config,
    section: SupervisedConfig,
    model: ModelConfig,
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
        model: Whose `dtype` rules: bfloat16 means autocast over float32 weights.
        validate: Whether there are validation rows.
        output_dir: Where the trainer may write; nothing in it is kept.
        own: Options that only this trainer has.
    """
    microbatch = section.microbatch_size or max(1, section.batch_size // world_size())
    accumulation = section.batch_size // (microbatch * world_size())
    bf16 = Runtime.detect(config.runtime, model).bf16
    arguments = arguments_class(
        output_dir=output_dir,
        seed=config.seed,
        per_device_train_batch_size=microbatch,
        per_device_eval_batch_size=microbatch,
        gradient_accumulation_steps=accumulation,
        **_optimisation(section),
        eval_strategy="no" if not validate else "steps" if section.evaluate_every_steps else "epoch",
        eval_steps=section.evaluate_every_steps,
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        deepspeed=deepspeed_config(
            config.distributed,
            bf16=bf16,
            max_gradient_norm=section.max_gradient_norm,
            microbatch_size=microbatch,
            accumulation_steps=accumulation,
        ),
        ddp_find_unused_parameters=False,
        max_length=None,  # rows that are too long were refused when they were read
        logging_steps=1,
        logging_nan_inf_filter=False,  # a loss that is not a number is shown as such
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **own,
    )
    arguments._n_gpu = min(1, torch.cuda.device_count())  # type: ignore[attr-defined]  # one GPU for each process
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
    elif not math.isfinite(result.metrics[_LOSS]):
        raise StageError(
            f"{stage}: the validation loss was never a finite number. Lower {stage}.learning_rate "
            f"({section.learning_rate}), or set {stage}.warmup_fraction"
        )
    result.steps = trainer.state.global_step
    forget_zero()
    return result


def save(trained: Trained, rebuild: Callable[[], nn.Module], tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a folder that plain `from_pretrained` loads, adapters merged; every process must call this.

    Args:
        trained: From `train`.
        rebuild: Makes the model as it was before training; the one that was trained may be spread over processes.
        tokenizer: Saved beside it.
        folder: Where to; it appears whole or not at all.
    """
    if is_main_process():
        model = rebuild()
        unknown = model.load_state_dict(trained.weights, strict=False).unexpected_keys
        assert not unknown, f"trained parameters that the model does not have: {unknown}"
        merge_and_save(model, tokenizer, folder)
    barrier()


def check_positions(stage: str, section: SupervisedConfig, model: Any) -> None:
    """Refuse rows longer than the model has positions for, before any is read.

    Raises:
        ConfigError: `max_tokens` is larger than that.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and section.max_tokens > positions:
        raise ConfigError(
            f"{stage}.max_tokens {section.max_tokens}: the model reads {positions} tokens; lower it to that"
        )


def report_skipped(stage: str, rows: Splits[Any]) -> None:
    """Say which bad rows were left out; the manifest keeps their numbers."""
    if rows.skipped and is_main_process():
        logger.warning("%s: %s. The first: %s", stage, rows.summary(), next(iter(rows.examples.values())))


def _optimisation(section: SupervisedConfig) -> dict[str, Any]:
    return {
        "num_train_epochs": section.epochs,
        "max_steps": section.max_steps or -1,
        "optim": "adamw_torch_fused",
        "learning_rate": section.learning_rate,
        "lr_scheduler_type": section.scheduler,
        "warmup_steps": section.warmup_fraction,  # below 1 it is a share of all steps
        "weight_decay": section.weight_decay,
        "max_grad_norm": section.max_gradient_norm,
        "activation_checkpointing": section.gradient_checkpointing,
    }
