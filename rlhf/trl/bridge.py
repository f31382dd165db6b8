"""The one door to TRL: whatever the stages and the PPO engine use of it passes through here.

TRL's classes carry a `Trl` in front, because the configuration and the PPO engine have classes of the same names. TRL's
notice about experimental modules and its telemetry are switched off. Nothing else is added or changed here; it is
heavy, so only the stages and the PPO engine import it.
"""

import os

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # before the imports: read while TRL is imported
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import huggingface_hub.constants
from trl.experimental.ppo import PPOConfig as TrlPPOConfig
from trl.experimental.ppo import PPOTrainer as TrlPPOTrainer
from trl.models.utils import prepare_deepspeed
from trl.trainer.reward_config import RewardConfig as TrlRewardConfig
from trl.trainer.reward_trainer import RewardTrainer as TrlRewardTrainer
from trl.trainer.sft_config import SFTConfig as TrlSFTConfig
from trl.trainer.sft_trainer import SFTTrainer as TrlSFTTrainer

__all__ = [
    "TrlPPOConfig",
    "TrlPPOTrainer",
    "TrlRewardConfig",
    "TrlRewardTrainer",
    "TrlSFTConfig",
    "TrlSFTTrainer",
    "prepare_deepspeed",
]

# The variable above comes too late where huggingface_hub was imported earlier; trainers ask for this when they start.
huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
