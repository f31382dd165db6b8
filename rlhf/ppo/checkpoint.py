"""Saving a trainer and going on from where it stopped.

Rollouts are a function of (seed, iteration, weights), so what has to be kept is little: weights, optimizer, schedule,
KL coefficient and the number of the iteration. Accelerate writes the first two, sharded under ZeRO.
"""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel

from rlhf.errors import StageError
from rlhf.launch.deepspeed import full_state
from rlhf.policies.critics import part, save_critic

if TYPE_CHECKING:
    from rlhf.ppo.trainer import PPOTrainer

_STATE = "state"  # a folder of its own: Accelerate would mistake the saved models for its own files
_PROGRESS = "progress.json"  # written last: a folder without it is an unfinished checkpoint


def save(trainer: "PPOTrainer", folder: str) -> None:
    """Write a checkpoint that `load` goes on from, and the models as `save_models` does, into `folder`."""
    # Safe serialisation refuses weights that share memory, as a tied output layer does.
    trainer.accelerator.save_state(os.path.join(folder, _STATE), safe_serialization=False)
    save_models(trainer, folder)
    if trainer.accelerator.is_main_process:
        progress = {
            "iteration": trainer.state.global_step,
            "episode": trainer.state.episode,
            "kl_coefficient": trainer.kl_controller.coefficient,
            "scheduler": trainer.lr_scheduler.state_dict(),
        }
        trainer.state.save_to_json(os.path.join(folder, "trainer_state.json"))
        unfinished = Path(folder, _PROGRESS + ".tmp")
        unfinished.write_text(json.dumps(progress, default=str))
        os.replace(unfinished, Path(folder, _PROGRESS))
    trainer.accelerator.wait_for_everyone()


def load(trainer: "PPOTrainer", folder: str) -> None:
    """Put a trainer, built with the same options, into the state in which `save` found it."""
    path = Path(folder, _PROGRESS)
    if not path.is_file():
        raise StageError(
            f"{folder} is no finished checkpoint: {_PROGRESS} is missing. Use an older one, or start anew."
        )
    progress = json.loads(path.read_text())
    trainer.accelerator.load_state(os.path.join(folder, _STATE))
    trainer.state.global_step = progress["iteration"]
    trainer.state.episode = progress["episode"]
    trainer.kl_controller.coefficient = progress["kl_coefficient"]
    trainer.lr_scheduler.load_state_dict(progress["scheduler"])


def save_models(trainer: "PPOTrainer", folder: str) -> None:
    """Save the policy (its adapters, if it has some) and tokenizer, and the critic in a subfolder `critic`."""
    state = full_state(trainer.actor_critic)
    if not trainer.accelerator.is_main_process:
        return
    policy: Any = trainer.actor_critic.policy
    # Other adapters on its trunk are other roles: the critic's goes with the critic.
    chosen = {"selected_adapters": policy.active_adapters} if isinstance(policy, PeftModel) else {}
    policy.save_pretrained(folder, state_dict=part(state, "policy."), **chosen)
    trainer.processing_class.save_pretrained(folder)
    save_critic(trainer, state, Path(folder, "critic"))
