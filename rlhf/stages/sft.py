"""The SFT stage: the model learns to answer as the demonstrations do. The first stage; writes the policy's folder.

The loss is the mean negative log-likelihood, in nats, of the response tokens and the EOS behind them; prompt tokens are
context only. Training is TRL's `SFTTrainer`, what it shares with the reward stage stands in `supervised.py`.
"""

import math
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from reward_models.chat import Text, encode_prompt, encode_response
from rlhf.config.schema import Config
from rlhf.data import Demonstration, Tokens, load_rows
from rlhf.errors import StageError
from rlhf.files.run_folder import RunFolder
from rlhf.launch.deepspeed import world_size
from rlhf.launch.runtime import Runtime
from rlhf.models.adapters import add_adapters
from rlhf.models.load import load_policy, load_tokenizer
from rlhf.models.precision import round_frozen_matrices
from rlhf.stages.corpus import texts
from rlhf.stages.supervised import Validation, check_positions, report_skipped, save, train, training_arguments
from rlhf.stages.trl import TrlSFTConfig, TrlSFTTrainer
from rlhf.tracking.tracker import Tracker

__all__ = ["run"]

_NO_LOSS = -100  # the label of a token that is context only


def run(config: Config, folder: RunFolder, tracker: Tracker, runtime: Runtime) -> dict[str, Any]:
    """Fine-tune the model on the demonstrations and write `folder.sft`; return what the manifest keeps.

    Raises:
        StageError: The config has no section `sft`, or the training diverges.
        UserError: The data or the model cannot be used.
    """
    if config.sft is None:
        raise StageError("the config has no section sft: add it, or choose another command")
    section = config.sft
    tokenizer = load_tokenizer(config.model, texts(config) if config.model.architecture is not None else None)
    model = _build(config, tokenizer)
    if runtime.for_model(config.model).bf16 and (config.model).lora is not None and config.distributed.zero is None:
        round_frozen_matrices(model)
    check_positions("sft", section, model)
    rows = load_rows(
        section.data,
        "demonstrations",
        encode=lambda prompt, response: _encode(tokenizer, prompt, response),
        max_tokens=section.max_tokens,
    )
    report_skipped("sft", rows)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = training_arguments(
            TrlSFTConfig, config, section, config.model, validate=bool(rows.validation), output_dir=scratch
        )
        trainer = SFTTrainer(
            model,
            arguments,
            train_dataset=Dataset.from_list(_labelled(rows.train)),
            eval_dataset=_validation_set(_labelled(rows.validation), arguments.per_device_eval_batch_size),
            processing_class=tokenizer,
        )
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


class SFTTrainer(Validation, TrlSFTTrainer):  # type: ignore[misc]  # trl has no types
    """TRL's trainer, validating by the mean over all response tokens."""

    def measure(self, model: nn.Module, batch: dict[str, Any]) -> Tensor:
        """Sums over the response tokens of a batch, (1, 4): loss, entropy, tokens ranked first, tokens."""
        outputs = model(**batch, num_items_in_batch=1)  # the loss is divided by this number: a sum
        sums = (outputs.loss, outputs.entropy_sum, outputs.num_correct_tokens, outputs.num_valid_tokens)
        return torch.stack([value.double() for value in sums])[None]

    def summarise(self, measured: Tensor) -> dict[str, float]:
        """Means over all response tokens."""
        loss, entropy, correct, tokens = measured.sum(0).tolist()
        return {
            "eval_loss": loss / tokens,
            "eval_entropy": entropy / tokens,
            "eval_mean_token_accuracy": correct / tokens,
        }


def _build(config: Config, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    model: nn.Module = load_policy(config.model, tokenizer, seed=config.seed)
    if config.model.lora is not None:
        model = add_adapters(model, config.model.lora, "language_model", seed=config.seed)
    return model


def _labelled(rows: Sequence[Demonstration]) -> list[dict[str, list[int]]]:
    """Token ids of each row, and its labels: the response's ids, EOS included."""
    tokens = [row.tokens[0] for row in rows]
    return [{"input_ids": t.context + t.response, "labels": [_NO_LOSS] * len(t.context) + t.response} for t in tokens]


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: Text, response: str | None) -> Tokens:
    assert response is not None  # demonstrations have one
    return Tokens(encode_prompt(tokenizer, prompt), encode_response(tokenizer, prompt, response))


def _validation_set(rows: list[dict[str, list[int]]], batch_size: int) -> Dataset | None:
    """The validation rows, filled up to whole batches for all processes with rows that carry no loss."""
    if not rows:
        return None
    blank = {"input_ids": rows[0]["input_ids"], "labels": [_NO_LOSS] * len(rows[0]["labels"])}
    return Dataset.from_list(rows + [blank] * (-len(rows) % (batch_size * world_size())))
