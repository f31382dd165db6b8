"""The reward-model stage: a scalar model learns from pairs which of two responses people prefer.

Bradley-Terry (Ouyang et al., 2022, equation 1): P(chosen wins) = sigmoid(score(chosen) - score(rejected)); the loss is
the mean negative log-likelihood of the pairs, in nats. How the model is read is `reward_trainer.py`'s matter, what the
stage shares with the SFT stage is in `supervised.py`. Afterwards `normalisation.py` gives scores mean 0 and variance 1
on the SFT policy's responses. Writes a folder that `AutoModelForSequenceClassification` loads, and in it, if the model
is the SFT policy's trunk with LoRA, the adapter that was not merged: PPO may run it on the policy's own trunk.
"""

import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from datasets import Dataset
from torch import nn
from transformers import PreTrainedTokenizerBase

from reward_models.chat import Text, encode_dialogue, to_messages
from rlhf.config.model import ModelConfig
from rlhf.config.schema import Config
from rlhf.config.training import RewardConfig
from rlhf.data import Preference, Splits, Tokens, load_rows
from rlhf.errors import StageError
from rlhf.files.run_folder import RunFolder
from rlhf.launch.runtime import Runtime
from rlhf.models.adapters import add_adapters
from rlhf.models.load import check_classifier, load_sequence_classifier, load_tokenizer, open_config
from rlhf.models.shared_trunk import fingerprint, save_adapter
from rlhf.scoring.shared_reward import ADAPTER
from rlhf.stages.base_model import policy_folder, policy_tokenizer
from rlhf.stages.corpus import texts
from rlhf.stages.normalisation import normalise
from rlhf.stages.reward_trainer import RewardTrainer
from rlhf.stages.supervised import (
    check_positions,
    report_rows,
    save,
    store_as_computed,
    train,
    training_arguments,
)
from rlhf.stages.trl import TrlRewardConfig
from rlhf.tracking.tracker import Tracker

__all__ = ["Inputs", "prepare", "run"]


class Inputs(NamedTuple):
    """What the stage reads, checked."""

    tokenizer: PreTrainedTokenizerBase
    rows: Splits[Preference]


def prepare(config: Config, tokenizer: PreTrainedTokenizerBase) -> Inputs:
    """Read and check everything that the stage will need, before any model is loaded.

    Args:
        config: The configuration.
        tokenizer: The policy's; a backbone of the reward model's own brings another one.

    Raises:
        StageError: The config has no section `reward`.
        UserError: The data or the model cannot be used.
    """
    section, of_model = _section(config), _model_section(config)
    if section.model is not None:
        tokenizer = load_tokenizer(of_model, texts(config) if of_model.architecture is not None else None)
    backbone = open_config(of_model, tokenizer)
    check_classifier("reward.model" if section.model is not None else "model", backbone)
    check_positions("reward", section, backbone)
    rows = load_rows(
        section.data,
        "preferences",
        encode=lambda prompt, response: _encode(tokenizer, prompt, response),
        max_tokens=section.max_tokens,
    )
    return Inputs(tokenizer, rows)


def run(
    config: Config, folder: RunFolder, tracker: Tracker, runtime: Runtime, inputs: Inputs | None = None
) -> dict[str, Any]:
    """Train the reward model on the preferences and write `folder.reward`; return what the manifest keeps.

    Args:
        config: The configuration.
        folder: Holds the SFT policy; the reward model goes there.
        tracker: Gets the curves.
        runtime: Where models compute.
        inputs: From `prepare`, which is called now if there are none.

    Raises:
        StageError: The config has no section `reward`, the SFT stage has not run, or the training diverges.
        UserError: The data or the model cannot be used, or the scores do not tell responses apart.
    """
    section, of_model = _section(config), _model_section(config)
    tokenizer, rows = inputs or prepare(config, policy_tokenizer(config))
    model: Any = _build(config, folder, tokenizer)
    trunk = fingerprint(model)  # now: the weights are whole, whatever DeepSpeed does with them later
    store_as_computed(model, of_model, config, runtime.for_model(of_model))
    report_rows("reward", rows)
    with tempfile.TemporaryDirectory() as scratch:
        trainer = _trainer(config, model, tokenizer, rows, runtime.for_model(of_model), scratch)
        trained = train(trainer, tracker, "reward", section)
    save(trained, lambda: _build(config, folder, tokenizer), tokenizer, folder.reward)
    if section.model is None and config.model.lora is not None and runtime.is_main_process:
        save_adapter(folder.reward / ADAPTER, model.peft_config["default"], trained.weights, "default", trunk)
    del trainer, model  # sampling needs the memory
    normalisation = normalise(config, folder, [row.prompt for row in rows.train], runtime, tracker.progress)
    scale = {"normalisation_mean": normalisation.mean, "normalisation_std": normalisation.std}
    tracker.log({f"reward/{name}": value for name, value in scale.items()}, trained.steps)
    return {
        "train_pairs": len(rows.train),
        "validation_pairs": len(rows.validation),
        "skipped_rows": rows.skipped,
        **_held_out(trained.metrics),
        **scale,
        "normalisation_samples": normalisation.samples,
        "steps": trained.steps,
        "best_step": trained.best_step,
    }


def _trainer(
    config: Config,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Splits[Preference],
    runtime: Runtime,
    output_dir: str,
) -> RewardTrainer:
    assert config.reward is not None
    arguments = training_arguments(
        TrlRewardConfig,
        config,
        config.reward,
        runtime,
        validate=bool(rows.validation),
        output_dir=output_dir,
        center_rewards_coefficient=config.reward.center_coefficient,
        disable_dropout=False,  # the model has none, and that of its adapters is configured
    )
    return RewardTrainer(
        model,
        arguments,
        runtime,
        train_dataset=_tokenised(rows.train),
        eval_dataset=_tokenised(rows.validation) if rows.validation else None,
        processing_class=tokenizer,
    )


def _held_out(metrics: Mapping[str, float]) -> dict[str, Any]:
    """The validation that the manifest keeps; every value is None if nothing validates."""
    return {
        "validation_loss": metrics.get("eval_loss"),
        "accuracy": metrics.get("eval_accuracy"),
        "accuracy_interval": [metrics.get("eval_accuracy_low"), metrics.get("eval_accuracy_high")],
        "mean_margin": metrics.get("eval_margin"),
        "expected_calibration_error": metrics.get("expected_calibration_error"),
    }


def _section(config: Config) -> RewardConfig:
    if config.reward is None:
        raise StageError("the config has no section reward: add it, or choose another command")
    return config.reward


def _model_section(config: Config) -> ModelConfig:
    """The section that says what backbone the reward model has."""
    return _section(config).model or config.model


def _build(config: Config, folder: RunFolder, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    """The SFT policy's trunk, or another backbone, with a new head, and with adapters if it is trained by them."""
    own = _section(config).model
    origin = own or policy_folder(config, folder) or config.model
    model: nn.Module = load_sequence_classifier(origin, tokenizer, seed=config.seed)
    lora = _model_section(config).lora
    if lora is not None:
        model = add_adapters(model, lora, "reward_model", seed=config.seed)
    return model


def _tokenised(rows: Sequence[Preference]) -> Dataset:
    pairs = [row.tokens for row in rows]
    return Dataset.from_list([{"chosen_ids": c.response, "rejected_ids": r.response} for c, r in pairs])


def _encode(tokenizer: PreTrainedTokenizerBase, prompt: Text, response: str | None) -> Tokens:
    """The whole conversation, up to the EOS where the score is read; none of it is context only."""
    assert response is not None  # pairs have two
    return Tokens([], encode_dialogue(tokenizer, [*to_messages(prompt), {"role": "assistant", "content": response}]))
