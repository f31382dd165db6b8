"""The PPO engine: sample, score, estimate advantages, update.

Reading order: `trainer` (the loop), `rollout` and `sampler` (where episodes come from), `batch` (how they are laid
out), `token_rewards`, `advantages` and `losses` (the mathematics, one formula in one place).

The trainer and its options are here under the names that TRL gives them, and what loads a trained critic; they are
imported when they are asked for, because they are heavy and other modules of this package are not.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf.policies.critics import load_critic
    from rlhf.ppo.trainer import PPOTrainer
    from rlhf.trl.config import PPOConfig

__all__ = ["PPOConfig", "PPOTrainer", "load_critic"]

_HOMES = {
    "PPOConfig": "rlhf.trl.config",
    "PPOTrainer": "rlhf.ppo.trainer",
    "load_critic": "rlhf.policies.critics",
}


def __getattr__(name: str) -> Any:
    """Import what is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
