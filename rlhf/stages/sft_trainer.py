"""The trainer of the SFT stage: demonstrations in, the negative log-likelihood of their response tokens out.

The loop is TRL's `SFTTrainer`. The output layer is read where a response token is predicted and nowhere else, so that
nobody holds logits of all tokens.

Notation: B rows, L tokens of the longest, n tokens of all, t response tokens of all, d hidden size, V vocabulary.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rlhf.launch.runtime import Runtime
from rlhf.packing.packed import PackedRows
from rlhf.policies import head
from rlhf.policies.decoder_only import DecoderOnly
from rlhf.policies.logprobs import logprobs_and_entropy
from rlhf.stages.packed_trainer import PackedTrainer, padded
from rlhf.stages.trl import TrlSFTTrainer

__all__ = ["NO_LOSS", "SFTTrainer", "collate", "read_responses", "response_tokens"]

NO_LOSS = -100  # the label of a token that is context only, as transformers has it
_LOGITS = 4 * 2**20  # that validation holds at once: 16 MiB in float32


class SFTTrainer(PackedTrainer, TrlSFTTrainer):  # type: ignore[misc]  # trl has no types
    """TRL's trainer with our loss: the model is called on packed rows and gives what its response tokens get.

    Args:
        model: A causal language model, with adapters or without.
        arguments: From `training_arguments`.
        runtime: Where and in which precision.
        kwargs: TRL's.
    """

    def __init__(self, model: nn.Module, arguments: Any, runtime: Runtime, **kwargs: Any) -> None:
        super().__init__(model, arguments, data_collator=collate, **kwargs)
        self.model_accepts_loss_kwargs = True  # so that transformers counts the tokens of the whole step for the loss
        self.reading = partial(read_responses, DecoderOnly(self.model, runtime))
        self.tokens = 0  # of all training rows so far, in this process

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Return this microbatch's part of the mean over the response tokens of an optimizer step, in nats.

        Args:
            model: What calls `read_responses`.
            inputs: From `collate`.
            return_outputs: As transformers has it; nothing asks for outputs.
            num_items_in_batch: Response tokens of the step, in all its microbatches and processes.
        """
        self.tokens += int(inputs["lengths"].sum())
        logprobs = model(*response_tokens(inputs))[0]
        # DDP and DeepSpeed average gradients over the processes, the loss is a sum over them.
        loss: Tensor = -logprobs.sum() * self.accelerator.num_processes / num_items_in_batch
        return loss

    def report(self) -> dict[str, float]:
        """Training tokens so far, prompts included."""
        return {"tokens": float(self.accelerator.gather(torch.tensor(self.tokens, device=self.args.device)).sum())}

    def measure(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Sums over the response tokens of each row, (B, 4): -log p, entropy, tokens ranked first, tokens."""
        logprobs, entropies, first = model(*response_tokens(batch), statistics=True)
        of_tokens = torch.stack([-logprobs, entropies, first, torch.ones_like(first)], 1).double()
        row, _ = (batch["labels"] != NO_LOSS).nonzero(as_tuple=True)  # of each response token, (t,)
        return of_tokens.new_zeros(len(batch["labels"]), 4).index_add_(0, row, of_tokens)

    def summarise(self, measured: Tensor) -> dict[str, float]:
        """Means over all response tokens."""
        loss, entropy, first, tokens = measured.sum(0).tolist()
        return {"eval_loss": loss / tokens, "eval_entropy": entropy / tokens, "eval_token_accuracy": first / tokens}


def response_tokens(batch: dict[str, Tensor]) -> tuple[PackedRows, Tensor, Tensor]:
    """Pack a batch of `collate`: its n tokens, which of them predict a response token (t,), and what comes (t,)."""
    rows = PackedRows.from_padded(batch["input_ids"], batch["lengths"])
    row, place = (batch["labels"] != NO_LOSS).nonzero(as_tuple=True)
    return rows, rows.grid[row, place - 1], batch["labels"][row, place]  # the state before a token predicts it


def read_responses(
    policy: DecoderOnly, rows: PackedRows, predictors: Tensor, targets: Tensor, *, statistics: bool = False
) -> Tensor:
    """Return log-probabilities of response tokens, (1, t), in nats; what the model does when a trainer calls it.

    Args:
        policy: The model.
        rows: n tokens.
        predictors: (t,) which of them predict.
        targets: (t,) the response tokens.
        statistics: Also the entropies and whether the target is ranked first: (3, t). Not for training.
    """
    states = policy.states(rows, predictors)  # (t, d)
    return _statistics(policy, states, targets) if statistics else policy.logprobs(states, targets)[0][None]


def _statistics(policy: DecoderOnly, states: Tensor, targets: Tensor) -> Tensor:
    layer: Any = head.output_layer(policy.model)
    states = states.to(torch.promote_types(states.dtype, layer.weight.dtype))
    rows = max(1, _LOGITS // head.unwrapped(policy.model).config.get_text_config().vocab_size)
    parts = []
    with torch.autocast(states.device.type, enabled=False):
        for some, wanted in zip(torch.split(states, rows), torch.split(targets, rows), strict=True):
            logits = head.scale_logits(policy.model, layer(some))  # (rows, V)
            logprobs, entropies = logprobs_and_entropy(logits, wanted)
            parts.append(torch.stack([logprobs, entropies, (logits.argmax(1) == wanted).to(logprobs.dtype)]))
    return torch.cat(parts, 1)


def collate(rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Lay rows out as tensors: `input_ids` and `labels` (B, L), `lengths` (B,)."""
    return {
        "input_ids": padded([row["input_ids"] for row in rows], 0),
        "labels": padded([row["labels"] for row in rows], NO_LOSS),
        "lengths": torch.tensor([len(row["input_ids"]) for row in rows]),
    }
