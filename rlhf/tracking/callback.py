"""Connects transformers' Trainer, and so those of the SFT and the reward stage, to our tracker and progress bar.

The stages call `attach`; the trainer's logs then arrive as `sft/loss`, `reward/validation_accuracy` and so on. The
callback reports; it never changes the course of the training.
"""

import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from rlhf.tracking.metrics import METRICS
from rlhf.tracking.progress import StageProgress
from rlhf.tracking.tracker import Tracker

__all__ = ["TrackerCallback", "attach", "stage_metrics"]

# transformers' names that do not say what they are in ours. "eval_" becomes "validation_" for all.
_OUR_NAMES = {
    "grad_norm": "gradient_norm",
    "train_runtime": "seconds/train",
    "train_samples_per_second": "samples_per_second",
    "train_steps_per_second": "steps_per_second",
    "eval_runtime": "seconds/validation",
}


class TrackerCallback(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Forwards the Trainer's logs under a stage's prefix and moves the progress bar.

    Args:
        tracker: Where metrics go.
        stage: Prefix, "sft" or "reward".
        progress: The bar; default: the tracker's.
    """

    def __init__(self, tracker: Tracker, stage: str, progress: StageProgress | None = None) -> None:
        self._tracker = tracker
        self._stage = stage
        self._progress = progress or tracker.progress
        self._training = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the bar, where a resumed training stands."""
        self._training = True
        self._progress.start(state.max_steps, state.global_step, unit="steps")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Moves the bar; where a log follows, it does so with the step's own numbers."""
        if not control.should_log:
            self._progress.update(state.global_step)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Says why the bar stands still."""
        self._progress.note("validating")

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Forwards what the Trainer logs."""
        self._progress.note("")
        if not state.is_world_process_zero or not logs:
            return
        metrics = stage_metrics(self._stage, logs)
        if metrics:
            self._tracker.log(metrics, state.global_step)
        if self._training:
            loss = metrics.get(f"{self._stage}/loss")
            shown = {} if loss is None else {"loss": loss}
            self._progress.update(state.global_step, **shown)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ends the bar; also after an early stop, where steps are left over."""
        self._training = False
        self._progress.load("saving")


def attach(trainer: Any, tracker: Tracker, stage: str, progress: StageProgress | None = None) -> TrackerCallback:
    """Adds a `TrackerCallback` to a Trainer, in place of the bar and the printing of its own."""
    for own in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(own)
    callback = TrackerCallback(tracker, stage, progress)
    trainer.add_callback(callback)
    return callback


def stage_metrics(stage: str, logs: Mapping[str, Any]) -> dict[str, float]:
    """The Trainer's logs under our names; what has none of ours goes under `STAGE/trainer/`.

    A validation loss of the SFT stage comes with its perplexity.

    Args:
        stage: Prefix of the names.
        logs: What `Trainer.log` was given. Names that begin with `STAGE/` are ours already; whatever is not a number
            is left out.
    """
    metrics: dict[str, float] = {}
    for name, value in logs.items():
        if isinstance(value, Real):
            metrics[_stage_name(stage, name)] = float(value)
    loss = metrics.get("sft/validation_loss")
    if loss is not None:
        metrics["sft/perplexity"] = _perplexity(loss)
    return metrics


def _stage_name(stage: str, name: str) -> str:
    if name.startswith(f"{stage}/"):
        return name
    ours = _OUR_NAMES.get(name)
    if ours is None:
        plain = name.removeprefix("eval_")
        ours = ("validation_" if plain != name else "") + _OUR_NAMES.get(plain, plain)
    known = f"{stage}/{ours}"
    return known if known in METRICS else f"{stage}/trainer/{name}"


def _perplexity(loss: float) -> float:
    """exp(cross-entropy in nats per token); infinite where that overflows."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
