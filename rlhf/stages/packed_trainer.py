"""What the SFT and the reward-model trainer share: how the model is called, validated and reported.

TRL's trainers keep the loop, the optimizer and the processes. The model is read as in PPO, on packed rows and only
where the loss looks: so its forward pass is ours while it trains, behind whatever is wrapped around it (DDP, a
DeepSpeed engine, autocast). Losses are the stages'.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import TrainerCallback
from transformers.trainer_utils import EvalLoopOutput

from rlhf.launch.deepspeed import full_state
from rlhf.stages.trained import LOSS, Trained

__all__ = ["BestWeights", "PackedTrainer", "padded"]


class PackedTrainer:
    """Mixed in before one of TRL's trainers, which it makes read, validate and log as our stages do.

    A stage's trainer sets `reading`, and has `compute_loss`, `measure`, `summarise` and `report`.
    """

    model: nn.Module
    reading: Callable[..., Tensor]  # what calling the model does while it trains

    def measure(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Return what is to be known of each of the B rows of a validation batch, (B, numbers)."""
        raise NotImplementedError

    def summarise(self, measured: Tensor) -> dict[str, float]:
        """Return the validation's metrics, `eval_` before their names, of all N rows: (N, numbers) in float64."""
        raise NotImplementedError

    def report(self) -> dict[str, float]:
        """Return the stage's own metrics since the last training log; every process calls this."""
        raise NotImplementedError

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, the model's `forward` being `reading`; afterwards it is what it was before."""
        before = vars(self.model).get("forward")  # TRL's own, from 1.16 on
        self.model.forward = self.reading
        try:
            return super().train(*args, **kwargs)  # type: ignore[misc]  # the Trainer's
        finally:
            del self.model.forward
            if before is not None:
                self.model.forward = before

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log, the stage's own metrics beside the training loss."""
        if "loss" in logs:
            logs = {**logs, **self.report()}
        super().log(logs, *args, **kwargs)  # type: ignore[misc]  # the Trainer's

    @torch.no_grad()
    def evaluation_loop(self: Any, dataloader: Any, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Measure all validation rows once; the Trainer calls this, logs the result and goes on training.

        transformers averages over batches and repeats rows to fill the last one, so that its numbers depend on batch
        size and processes; these do not.
        """
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
        self.best = Trained(metrics={LOSS: math.inf})
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
        if metrics[LOSS] < self.best.metrics[LOSS]:
            weights = full_state(model, trainable_only=True)
            self.best = Trained(weights, dict(metrics), best_step=state.global_step)
            self._waited = 0
            return
        self._waited += 1
        if self._patience is not None and self._waited >= self._patience:
            control.should_training_stop = True


def padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Lay rows of numbers out as (B, L), L that of the longest, `value` in the padding on the right."""
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)
