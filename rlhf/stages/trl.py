"""The one door to TRL: the trainers of the supervised stages. The PPO loop uses nothing of it.

TRL's classes carry a `Trl` in front, because the configuration has classes of the same names. Its notice about
experimental modules and its telemetry are switched off.
"""

import os

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # before the imports: read while TRL is imported
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import huggingface_hub.constants
from trl import RewardConfig as TrlRewardConfig
from trl import RewardTrainer as TrlRewardTrainer
from trl import SFTConfig as TrlSFTConfig
from trl import SFTTrainer as TrlSFTTrainer

__all__ = ["TrlRewardConfig", "TrlRewardTrainer", "TrlSFTConfig", "TrlSFTTrainer"]

# The variable above comes too late where huggingface_hub was imported earlier; trainers ask for this when they start.
huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
