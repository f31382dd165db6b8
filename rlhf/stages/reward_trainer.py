"""The trainer of the reward model: pairs in, the Bradley-Terry loss and exact held-out metrics out.

The loop is TRL's `RewardTrainer`. Scores are read at each row's last token and nowhere else.

Notation: B pairs, so 2 B rows, first those of all chosen responses, then those of all rejected ones; L tokens of the
longest, d hidden size.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from reward_models.calibration import pair_metrics
from rlhf.launch.runtime import Runtime
from rlhf.packing.packed import PackedRows
from rlhf.policies import head
from rlhf.policies.decoder_only import DecoderOnly
from rlhf.stages.packed_trainer import PackedTrainer, padded
from rlhf.stages.trl import TrlRewardTrainer

__all__ = ["RewardTrainer", "collate", "pair_loss", "reads_last_token", "score_packed", "score_padded"]


class RewardTrainer(PackedTrainer, TrlRewardTrainer):  # type: ignore[misc]  # trl has no types
    """TRL's trainer, its model read on packed rows, validating by the exact metrics of all held-out pairs.

    Args:
        model: A sequence classifier of one label, with adapters or without.
        arguments: From `training_arguments`.
        runtime: Where and in which precision.
        processing_class: The model's tokenizer.
        kwargs: TRL's.
    """

    def __init__(
        self,
        model: nn.Module,
        arguments: Any,
        runtime: Runtime,
        *,
        processing_class: PreTrainedTokenizerBase,
        **kwargs: Any,
    ) -> None:
        collator = partial(collate, pad=processing_class.pad_token_id)
        super().__init__(model, arguments, data_collator=collator, processing_class=processing_class, **kwargs)
        if reads_last_token(self.model):
            self.reading = partial(score_packed, DecoderOnly(self.model, runtime))
        else:
            self.reading = partial(score_padded, self.model.forward, runtime)
        self.tokens = 0  # of all training rows so far, in this process
        self.scored: list[Tensor] = []  # (2, B) scores of the microbatches since the last log

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Return the loss of a microbatch in nats per pair; the Trainer averages over microbatches and processes.

        Args:
            model: What calls `score_packed`, or `score_padded`.
            inputs: From `collate`.
            return_outputs: As transformers has it; nothing asks for outputs.
            num_items_in_batch: As transformers has it; pairs are counted by the Trainer.
        """
        scores = model(**inputs).view(2, -1)
        self.tokens += int(inputs["lengths"].sum())
        self.scored.append(scores.detach())
        return pair_loss(scores[0], scores[1], self.args.center_rewards_coefficient)

    def report(self) -> dict[str, float]:
        """Scores of the pairs since the last log, and training tokens so far."""
        pairs = self.accelerator.gather(torch.cat(self.scored, 1).T.contiguous())  # (pairs, 2)
        tokens = self.accelerator.gather(torch.tensor(self.tokens, device=self.args.device)).sum()
        self.scored.clear()
        margins = pairs[:, 0] - pairs[:, 1]
        return {
            "tokens": float(tokens),
            "accuracy": float((margins > 0).float().mean()),
            "margin": float(margins.mean()),
            "mean_score": float(pairs.mean()),
            "min_score": float(pairs.min()),
            "max_score": float(pairs.max()),
        }

    def measure(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Scores of the pairs of a batch, (B, 2): of the chosen and of the rejected response."""
        scores: Tensor = model(**batch)
        return scores.view(2, -1).T.contiguous()

    def summarise(self, measured: Tensor) -> dict[str, float]:
        """Loss, accuracy with its 95% interval, margin and calibration."""
        if not measured.isfinite().all():
            return {"eval_loss": float("nan")}
        chosen, rejected = measured.unbind(1)
        pairs = pair_metrics(chosen.numpy(), rejected.numpy())
        return {
            "eval_loss": float(pair_loss(chosen, rejected, self.args.center_rewards_coefficient)),
            "eval_accuracy": pairs.accuracy,
            "eval_accuracy_low": pairs.accuracy_low,
            "eval_accuracy_high": pairs.accuracy_high,
            "eval_margin": pairs.mean_margin,
            "eval_mean_score": measured.mean().item(),
            "eval_min_score": measured.min().item(),
            "eval_max_score": measured.max().item(),
            "expected_calibration_error": pairs.calibration_error,
        }


def pair_loss(chosen: Tensor, rejected: Tensor, centering: float | None) -> Tensor:
    """Return the Bradley-Terry loss of B pairs, a mean in nats: Ouyang et al. (2022), equation 1.

    Args:
        chosen: (B,) scores of the preferred responses.
        rejected: (B,) scores of the others.
        centering: Weight of the square of a pair's summed scores, which keeps them near 0 (Eisenstein et al., 2023).
    """
    loss = -nn.functional.logsigmoid(chosen - rejected).mean()  # -log P(chosen wins)
    return loss if centering is None else loss + centering * (chosen + rejected).square().mean()


def reads_last_token(model: nn.Module) -> bool:
    """Whether a classifier is a causal decoder with a linear `score`; encoders see what stands behind a token too."""
    base = head.unwrapped(model)
    return hasattr(base, "score") and not getattr(base.config, "use_bidirectional_attention", False)


def score_packed(classifier: DecoderOnly, input_ids: Tensor, lengths: Tensor) -> Tensor:
    """Return the scores (rows,) in float32 of rows padded on the right; what they begin with together is read once.

    Args:
        classifier: See `reads_last_token`.
        input_ids: (rows, L).
        lengths: (rows,) tokens of each.
    """
    rows = PackedRows.from_padded(input_ids, lengths)
    states = classifier.states(rows, rows.last)  # (rows, d)
    with torch.autocast(states.device.type, enabled=False):
        score: nn.Module = head.unwrapped(classifier.model).score
        scores: Tensor = score(states.to(next(score.parameters()).dtype))
    return scores.squeeze(-1).float()


def score_padded(forward: Callable[..., Any], runtime: Runtime, input_ids: Tensor, lengths: Tensor) -> Tensor:
    """Return the scores (rows,) in float32 of any sequence classifier, called as it is.

    Args:
        forward: The model's own forward pass.
        runtime: In which precision.
        input_ids: (rows, L) padded on the right by the pad token.
        lengths: (rows,) tokens of each.
    """
    mask = torch.arange(input_ids.shape[1], device=lengths.device) < lengths[:, None]  # True where there is a token
    with runtime.autocast():
        logits: Tensor = forward(input_ids=input_ids, attention_mask=mask.long()).logits
    return logits.squeeze(-1).float()


def collate(rows: Sequence[dict[str, list[int]]], pad: int) -> dict[str, Tensor]:
    """Lay B pairs out as `input_ids` (2 B, L) and `lengths` (2 B,)."""
    dialogues = [row[name] for name in ("chosen_ids", "rejected_ids") for row in rows]
    return {"input_ids": padded(dialogues, pad), "lengths": torch.tensor([len(ids) for ids in dialogues])}
