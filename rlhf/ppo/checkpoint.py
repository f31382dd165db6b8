"""Saving a run and going on from where it stopped.

Rollouts are a function of (seed, iteration, weights), so what has to be kept is little: weights, optimizer, schedule,
KL coefficient and the number of the iteration. Accelerate writes the first two, sharded under ZeRO.
"""

import json
import os
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from rlhf.errors import StageError
from rlhf.files.atomic import write_text
from rlhf.launch.deepspeed import full_state
from rlhf.policies.critics import part, save_critic
from rlhf.ppo.trainer import PPO, Progress

_STATE = "state"  # a folder of its own: Accelerate would mistake the saved models for its own files
_PROGRESS = "progress.json"  # written last: a folder without it is an unfinished checkpoint


def save(ppo: PPO, folder: str | os.PathLike[str]) -> None:
    """Write a checkpoint that `load` goes on from; every process must call this."""
    if ppo.accelerator.is_main_process:
        Path(folder, _PROGRESS).unlink(
            missing_ok=True
        )  # of an earlier checkpoint in this folder: it is void from now on
    # Safe serialisation refuses weights that share memory, as a tied output layer does.
    ppo.accelerator.save_state(os.path.join(folder, _STATE), safe_serialization=False)
    if ppo.accelerator.is_main_process:
        progress = {
            **vars(ppo.progress),
            "kl_coefficient": ppo.kl_controller.coefficient,
            "schedule": ppo.schedule.state_dict(),
        }
        write_text(Path(folder, _PROGRESS), json.dumps(progress, default=str))
    ppo.accelerator.wait_for_everyone()


def load(ppo: PPO, folder: str | os.PathLike[str]) -> None:
    """Put a run, built with the same settings, into the state in which `save` found it."""
    path = Path(folder, _PROGRESS)
    if not path.is_file():
        raise StageError(
            f"{folder} is no finished checkpoint: {_PROGRESS} is missing. Use an older one, or start anew."
        )
    progress = json.loads(path.read_text())
    ppo.accelerator.load_state(os.path.join(folder, _STATE))
    ppo.progress = Progress(progress["iteration"], progress["episodes"])
    ppo.kl_controller.coefficient = progress["kl_coefficient"]
    ppo.schedule.load_state_dict(progress["schedule"])


def save_models(ppo: PPO, folder: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase) -> None:
    """Save the policy (its adapters, if it has some) and tokenizer, and the critic in a subfolder `critic`.

    Every process must call this.
    """
    state = full_state(ppo.actor_critic)
    if not ppo.accelerator.is_main_process:
        return
    policy: Any = ppo.actor_critic.policy
    # Other adapters on its trunk are other roles: the critic's goes with the critic.
    chosen = {"selected_adapters": policy.active_adapters} if isinstance(policy, PeftModel) else {}
    policy.save_pretrained(folder, state_dict=part(state, "policy."), **chosen)
    tokenizer.save_pretrained(folder)
    save_critic(ppo.actor_critic, state, tokenizer, Path(folder, "critic"))
