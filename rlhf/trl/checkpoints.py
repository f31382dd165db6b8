"""Folders `checkpoint-N`, as transformers names them: models, the loop's state, and as many as may be kept."""

import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from rlhf.errors import StageError
from rlhf.ppo import checkpoint
from rlhf.ppo.trainer import PPO
from rlhf.trl.callbacks import Callbacks
from rlhf.trl.config import PPOConfig

_STATE = "trainer_state.json"


def save_models(ppo: PPO, args: PPOConfig, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Write policy, tokenizer, critic and options; every process must call this."""
    checkpoint.save_models(ppo, folder, tokenizer)
    if ppo.accelerator.is_main_process:
        torch.save(args, Path(folder, "training_args.bin"))


def save(ppo: PPO, args: PPOConfig, tokenizer: PreTrainedTokenizerBase, callbacks: Callbacks) -> None:
    """Write `checkpoint-N`, then delete the oldest ones beyond `save_total_limit`; every process must call this."""
    folder = Path(args.output_dir, f"checkpoint-{callbacks.state.global_step}")
    if ppo.accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier run: its parts must not pass for this one's
    ppo.accelerator.wait_for_everyone()
    save_models(ppo, args, tokenizer, folder)
    if ppo.accelerator.is_main_process:
        callbacks.saved_state().save_to_json(str(folder / _STATE))
    if not args.save_only_model:
        checkpoint.save(ppo, folder)  # last: what it writes says that the checkpoint is whole
    if ppo.accelerator.is_main_process:
        _delete_oldest(args.output_dir, args.save_total_limit, keep=folder)


def load(ppo: PPO, args: PPOConfig, callbacks: Callbacks, which: str | os.PathLike[str] | bool) -> None:
    """Go on from a checkpoint.

    Args:
        ppo: The loop, built with the same options.
        args: The options.
        callbacks: Whose state goes on too.
        which: A folder, or True for the newest one in `output_dir`.

    Raises:
        StageError: There is none, or it is not whole.
    """
    if which is True:
        found = checkpoints(args.output_dir)
        if not found:
            raise StageError(f"resume_from_checkpoint is True, but {args.output_dir} has no checkpoint: name a folder")
        which = found[-1]
    folder: Any = which
    checkpoint.load(ppo, folder)
    callbacks.go_on_from(os.path.join(folder, _STATE), ppo.progress.iteration, ppo.progress.episodes)


def checkpoints(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the checkpoints in a folder, the newest one last."""
    found = [path for path in Path(folder).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))


def _delete_oldest(folder: str, limit: int | None, keep: Path) -> None:
    if limit is None or limit <= 0:
        return
    # Those of an earlier run in this folder count as older, whatever their number.
    by_age = sorted(checkpoints(folder), key=lambda path: (path == keep, path.stat().st_mtime_ns))
    for path in by_age[:-limit]:
        shutil.rmtree(path)
