"""The SFT stage: the model learns to answer as the demonstrations do. The first stage; writes the policy's folder.

The loss is the mean negative log-likelihood, in nats, of the response tokens and the EOS behind them, over all of an
optimizer step; prompt tokens are context only. How the model is read is `sft_trainer.py`'s matter; what the stage
shares with the reward stage is in `supervised.py`.
"""

import math
import tempfile
from collections.abc import Sequence
from typing import Any, NamedTuple

from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from reward_models.chat import Text, encode_prompt, encode_response
from rlhf.config.schema import Config
from rlhf.config.training import SFTConfig
from rlhf.data import Demonstration, Splits, Tokens, load_rows
from rlhf.errors import StageError
from rlhf.files.run_folder import RunFolder
from rlhf.launch.runtime import Runtime
from rlhf.models.adapters import add_adapters
from rlhf.models.load import load_policy, open_config
from rlhf.stages.base_model import policy_tokenizer
from rlhf.stages.sft_trainer import NO_LOSS, SFTTrainer
from rlhf.stages.supervised import (
    check_positions,
    report_rows,
    save,
    store_as_computed,
    train,
    training_arguments,
)
from rlhf.stages.trl import TrlSFTConfig
from rlhf.tracking.tracker import Tracker

__all__ = ["Inputs", "prepare", "run"]


class Inputs(NamedTuple):
    """What the stage reads, checked."""

    tokenizer: PreTrainedTokenizerBase
    rows: Splits[Demonstration]


def prepare(config: Config, tokenizer: PreTrainedTokenizerBase) -> Inputs:
    """Read and check everything that the stage will need, before any model is loaded.

    Args:
        config: The configuration.
        tokenizer: The policy's.

    Raises:
        StageError: The config has no section `sft`.
        UserError: The data or the model cannot be used.
    """
    section = _section(config)
    check_positions("sft", section, open_config(config.model, tokenizer))
    rows = load_rows(
        section.data,
        "demonstrations",
        encode=lambda prompt, response: _encode(tokenizer, prompt, response),
        max_tokens=section.max_tokens,
    )
    return Inputs(tokenizer, rows)


def run(
    config: Config, folder: RunFolder, tracker: Tracker, runtime: Runtime, inputs: Inputs | None = None
) -> dict[str, Any]:
    """Fine-tune the model on the demonstrations and write `folder.sft`; return what the manifest keeps.

    Args:
        config: The configuration.
        folder: Where the policy goes.
        tracker: Gets the curves.
        runtime: Where models compute.
        inputs: From `prepare`, which is called now if there are none.

    Raises:
        StageError: The config has no section `sft`, or the training diverges.
        UserError: The data or the model cannot be used.
    """
    section, runtime = _section(config), runtime.for_model(config.model)
    tokenizer, rows = inputs or prepare(config, policy_tokenizer(config))
    model = _build(config, tokenizer)
    store_as_computed(model, config.model, config, runtime)
    report_rows("sft", rows)
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


def _section(config: Config) -> SFTConfig:
    if config.sft is None:
        raise StageError("the config has no section sft: add it, or choose another command")
    return config.sft


def _build(config: Config, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    model: nn.Module = load_policy(config.model, tokenizer, seed=config.seed)
    if config.model.lora is not None:
        model = add_adapters(model, config.model.lora, "language_model", seed=config.seed)
    return model


def _labelled(rows: Sequence[Demonstration]) -> Dataset:
    """Token ids of each row, and its labels: the response's ids, EOS included."""
    tokens = [row.tokens[0] for row in rows]
    return Dataset.from_list(
        [{"input_ids": t.context + t.response, "labels": [NO_LOSS] * len(t.context) + t.response} for t in tokens]
    )


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: Text, response: str | None) -> Tokens:
    assert response is not None  # demonstrations have one
    return Tokens(encode_prompt(tokenizer, prompt), encode_response(tokenizer, prompt, response))
