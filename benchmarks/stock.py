"""TRL's own PPO trainer. It is in no TRL after 1.12.0, so that version comes from a folder of its own."""

import importlib.metadata
import os
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / ".trl-1.12"


def stock_ppo() -> tuple[Any, Any]:
    """Return TRL's PPOConfig and PPOTrainer.

    The folder goes in front of what is installed, which has to happen before anything imports TRL: call this in a
    process of its own.

    Raises:
        RuntimeError: They cannot be found.
    """
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # before the import: read while TRL is imported
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if "trl" not in sys.modules and FOLDER.is_dir():
        sys.path.insert(0, str(FOLDER))
    try:
        from trl.experimental.ppo import PPOConfig, PPOTrainer
    except ImportError as error:
        version = importlib.metadata.version("trl")
        raise RuntimeError(
            f"TRL's PPOTrainer is not in trl {version}; {FOLDER} has it once `make .trl-1.12` has been run, and it has "
            "to be imported before any other TRL"
        ) from error
    return PPOConfig, PPOTrainer
