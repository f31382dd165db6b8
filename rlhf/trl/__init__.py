"""The drop-in for scripts of TRL's PPOTrainer: translates names once, delegates; not a base of the loop.

    from rlhf.trl import PPOConfig, PPOTrainer

Reading order: `config` (the options), `options` (which of them act), `translate` (from them to section `ppo`), then
`trainer`, which builds the loop and says what TRL's trainer says.
Nothing of TRL is imported: it has no PPOTrainer after 1.12.
"""

from rlhf.policies.critics import load_critic
from rlhf.trl.config import PPOConfig
from rlhf.trl.trainer import PPOTrainer

__all__ = ["PPOConfig", "PPOTrainer", "load_critic"]
