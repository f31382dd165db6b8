"""The drop-in on tiny policies: TRL's names, on the CPU, reporting nothing."""

from pathlib import Path
from typing import Any

from ppo_helpers import FixedSource, letters_tokenizer
from torch import nn

from rlhf.episodes.episode import Episode
from rlhf.trl import PPOConfig, PPOTrainer

_ROLES = (
    "ref_model", "value_model", "reward_model", "train_dataset", "eval_dataset", "callbacks", "peft_config",
    "optimizers", "data_collator", "source", "on_iteration",
)  # fmt: skip


def ppo_config(folder: Path | str, **options: Any) -> PPOConfig:
    """Options for a run on the CPU that reports nothing; what a test is about is in `options`."""
    quiet = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "logging_steps": 10**6, "save_strategy": "no"}
    defaults = {"per_device_train_batch_size": 8, "temperature": 1.0, "compile_kernels": False}
    return PPOConfig(output_dir=str(folder), **{**quiet, **defaults, **options})


def make_trainer(
    folder: Path | str, policy: nn.Module, *, episodes: list[Episode] | None = None, **options: Any
) -> PPOTrainer:
    """A trainer on fixed episodes, all of them one iteration, unless `train_dataset` and `reward_model` are given."""
    given = {name: options.pop(name) for name in _ROLES if name in options}
    tokenizer = options.pop("tokenizer", None) or letters_tokenizer()
    if episodes is not None:
        given["source"] = FixedSource(episodes)
        options = {"per_device_train_batch_size": len(episodes), "total_episodes": len(episodes), **options}
    if "value_model" not in given:
        options = {"critic": "shared", **options}
    return PPOTrainer(ppo_config(folder, **options), tokenizer, policy, **given)
