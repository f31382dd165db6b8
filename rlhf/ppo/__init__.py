"""The PPO engine: score what was played, estimate advantages, update.

Reading order: `trainer` (the loop), `batch` (how episodes are laid out), `scoring`, `token_rewards`, `advantages` and
`losses` (the mathematics, one formula in one place), `update`.

Scripts that were written for TRL import the trainer from here under TRL's names. Those live in `rlhf.trl`, a room above
this one, and are looked up there when a script asks: nothing in this room uses them.
"""

from typing import Any

__all__ = ["PPOConfig", "PPOTrainer", "load_critic"]


def __getattr__(name: str) -> Any:
    """Look the names of TRL's scripts up in the drop-in."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from rlhf import trl  # upwards: the one exception, for `from rlhf.ppo import PPOConfig, PPOTrainer` of scripts

    return getattr(trl, name)
