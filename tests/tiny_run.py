"""A run folder with tiny random models, as the stages would leave it; for tests of what reads it."""

import json
from pathlib import Path

import torch
from transformers import LlamaForSequenceClassification

from reward_models.chat import prepare_tokenizer
from reward_models.normalise import Normalisation
from rlhf.config.model import ArchitectureConfig, TokenizerConfig
from rlhf.files.run_folder import RunFolder
from rlhf.models.scratch import build_config, build_model, train_tokenizer

PROMPTS = [f"Where is parcel number {i}, please?" for i in range(9)]


def make_tokenizer():
    return prepare_tokenizer(train_tokenizer(PROMPTS, TokenizerConfig(vocab_size=290), 512))


def save_policy(folder: Path, seed: int) -> Path:
    """A random policy: different seeds answer differently."""
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    model = build_model(build_config(ArchitectureConfig(hidden_size=16, max_positions=512), tokenizer))
    for parameter in model.parameters():
        parameter.data.mul_(3.0)  # far from uniform, so that policies differ and responses end
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_reward_model(folder: Path, seed: int) -> Path:
    """A random reward model with a normalisation."""
    tokenizer = make_tokenizer()
    torch.manual_seed(seed)
    config = build_config(ArchitectureConfig(hidden_size=16, max_positions=512), tokenizer)
    config.num_labels = 1
    model = LlamaForSequenceClassification(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    Normalisation(mean=0.1, std=0.5, samples=8).save(folder)
    return folder


def save_prompts(path: Path, prompts=PROMPTS) -> Path:
    path.write_text("".join(json.dumps({"prompt": prompt, "topic": "parcel"}) + "\n" for prompt in prompts), "utf-8")
    return path


def save_run(root: Path, ppo_seed: int = 1) -> RunFolder:
    """SFT policy from seed 0, PPO policy from `ppo_seed`, a reward model."""
    folder = RunFolder(root)
    save_policy(folder.sft, 0)
    save_policy(folder.ppo, ppo_seed)
    save_reward_model(folder.reward, 5)
    return folder


def run_config(data: Path, **changes):
    """A configuration for such a folder, with a model beside `data`; `changes` are merged in, section by section."""
    from rlhf.config.schema import Config

    values = {
        "model": {"path": str(save_policy(data.parent / "model", 0))},
        "sft": {"data": {"path": str(data)}},
        "reward": {"data": {"path": str(data)}},
        "ppo": {
            "data": {"path": str(data)},
            "rewards": {"reward_model": {}},
            "rollout": {"max_response_tokens": 8, "max_prompt_tokens": 64},
        },
        "evaluate": {"data": {"path": str(data)}, "bootstrap_resamples": 200, "table_rows": 3},
        "tracking": {"wandb": {"mode": "disabled"}, "tensorboard": False},
    }
    for key, value in changes.items():
        both = isinstance(values.get(key), dict) and isinstance(value, dict)
        values[key] = {**values[key], **value} if both else value
    return Config.model_validate(values)
