"""The SFT stage: the model learns to answer as the demonstrations do. The first stage; writes the policy's folder.

The loss is the mean negative log-likelihood, in nats, of the response tokens and the EOS behind them, over all of an
optimizer step; prompt tokens are context only. The output layer is read where a response token is predicted and nowhere
else. The loop is TRL's `SFTTrainer`; what it shares with the reward stage stands in `supervised.py` and
`packed_trainer.py`.

Notation: B rows, L tokens of the longest, n tokens of all, t response tokens of all, V vocabulary.
"""

import math
import tempfile
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from reward_models.chat import Text, encode_prompt, encode_response
from rlhf.config.schema import Config
from rlhf.data import Demonstration, Splits, Tokens, load_rows
from rlhf.errors import StageError
from rlhf.files.run_folder import RunFolder
from rlhf.launch.runtime import Runtime
from rlhf.models.adapters import add_adapters
from rlhf.models.load import load_policy, load_tokenizer
from rlhf.packing.packed import PackedRows
from rlhf.policies import head
from rlhf.policies.decoder_only import DecoderOnly
from rlhf.policies.logprobs import logprobs_and_entropy
from rlhf.stages.corpus import texts
from rlhf.stages.packed_trainer import PackedTrainer, padded
from rlhf.stages.supervised import (
    check_positions,
    report_skipped,
    save,
    store_as_computed,
    train,
    training_arguments,
)
from rlhf.stages.trl import TrlSFTConfig, TrlSFTTrainer
from rlhf.tracking.tracker import Tracker

__all__ = ["run"]

_NO_LOSS = -100  # the label of a token that is context only, as transformers has it
_LOGITS = 4 * 2**20  # that validation holds at once: 16 MiB in float32


def run(config: Config, folder: RunFolder, tracker: Tracker, runtime: Runtime) -> dict[str, Any]:
    """Fine-tune the model on the demonstrations and write `folder.sft`; return what the manifest keeps.

    Raises:
        StageError: The config has no section `sft`, or the training diverges.
        UserError: The data or the model cannot be used.
    """
    if config.sft is None:
        raise StageError("the config has no section sft: add it, or choose another command")
    section, runtime = config.sft, runtime.for_model(config.model)
    tokenizer = load_tokenizer(config.model, texts(config) if config.model.architecture is not None else None)
    model = _build(config, tokenizer)
    store_as_computed(model, config.model, config, runtime)
    check_positions("sft", section, model)
    rows = load_rows(
        section.data,
        "demonstrations",
        encode=lambda prompt, response: _encode(tokenizer, prompt, response),
        max_tokens=section.max_tokens,
    )
    report_skipped("sft", rows)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(config, model, tokenizer, rows, runtime, scratch)
        trained = train(trainer, tracker, "sft", section)
    save(trained, lambda: _build(config, tokenizer), tokenizer, folder.sft)
    loss = trained.metrics.get("eval_loss")
    return {
        "train_rows": len(rows.train),
        "validation_rows": len(rows.validation),
        "skipped_rows": rows.skipped,
        "validation_loss": loss,
        "perplexity": None if loss is None else math.exp(loss),
        "steps": trained.steps,
        "best_step": trained.best_step,
    }


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
        self.model_accepts_loss_kwargs = (
            True  # the loss below is divided by all tokens of the step, not of a microbatch
        )
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
        return -logprobs.sum() * self.accelerator.num_processes / num_items_in_batch

    def report(self) -> dict[str, float]:
        """Training tokens so far, prompts included."""
        return {"tokens": float(self.accelerator.gather(torch.tensor(self.tokens, device=self.args.device)).sum())}

    def measure(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        """Sums over the response tokens of each row, (B, 4): -log p, entropy, tokens ranked first, tokens."""
        logprobs, entropies, first = model(*response_tokens(batch), statistics=True)
        of_tokens = torch.stack([-logprobs, entropies, first, torch.ones_like(first)], 1).double()
        row, _ = (batch["labels"] != _NO_LOSS).nonzero(as_tuple=True)  # of each response token, (t,)
        return of_tokens.new_zeros(len(batch["labels"]), 4).index_add_(0, row, of_tokens)

    def summarise(self, measured: Tensor) -> dict[str, float]:
        """Means over all response tokens."""
        loss, entropy, first, tokens = measured.sum(0).tolist()
        return {"eval_loss": loss / tokens, "eval_entropy": entropy / tokens, "eval_token_accuracy": first / tokens}


def response_tokens(batch: dict[str, Tensor]) -> tuple[PackedRows, Tensor, Tensor]:
    """Pack a batch of `collate`: its n tokens, which of them predict a response token (t,), and what comes (t,)."""
    rows = PackedRows.from_padded(batch["input_ids"], batch["lengths"])
    row, place = (batch["labels"] != _NO_LOSS).nonzero(as_tuple=True)
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
        for some, wanted in zip(states.split(rows), targets.split(rows), strict=True):
            logits = head.scale_logits(policy.model, layer(some))  # (rows, V)
            logprobs, entropies = logprobs_and_entropy(logits, wanted)
            parts.append(torch.stack([logprobs, entropies, (logits.argmax(1) == wanted).to(logprobs.dtype)]))
    return torch.cat(parts, 1)


def collate(rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
    """Lay rows out as tensors: `input_ids` and `labels` (B, L), `lengths` (B,)."""
    return {
        "input_ids": padded([row["input_ids"] for row in rows], 0),
        "labels": padded([row["labels"] for row in rows], _NO_LOSS),
        "lengths": torch.tensor([len(row["input_ids"]) for row in rows]),
    }


def _trainer(
    config: Config,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Splits[Demonstration],
    runtime: Runtime,
    output_dir: str,
) -> SFTTrainer:
    assert config.sft is not None
    arguments = training_arguments(
        TrlSFTConfig, config, config.sft, runtime, validate=bool(rows.validation), output_dir=output_dir
    )
    return SFTTrainer(
        model,
        arguments,
        runtime,
        train_dataset=_labelled(rows.train),
        eval_dataset=_labelled(rows.validation) if rows.validation else None,
        processing_class=tokenizer,
    )


def _build(config: Config, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    model: nn.Module = load_policy(config.model, tokenizer, seed=config.seed)
    if config.model.lora is not None:
        model = add_adapters(model, config.model.lora, "language_model", seed=config.seed)
    return model


def _labelled(rows: Sequence[Demonstration]) -> Dataset:
    """Token ids of each row, and its labels: the response's ids, EOS included."""
    tokens = [row.tokens[0] for row in rows]
    return Dataset.from_list(
        [{"input_ids": t.context + t.response, "labels": [_NO_LOSS] * len(t.context) + t.response} for t in tokens]
    )


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: Text, response: str | None) -> Tokens:
    assert response is not None  # demonstrations have one
    return Tokens(encode_prompt(tokenizer, prompt), encode_response(tokenizer, prompt, response))
