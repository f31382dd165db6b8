"""The preflight: everything that the stages of a run will read is read and checked before the first of them begins.

Every row is rendered and tokenised, every model's settings are opened, environments are built and two episodes are
played with the configured reward functions and a scripted answer. What that made is what the stages then use, so
nothing is done twice, and a mistake in the last stage costs no training of the first. No weights are loaded.
"""

from collections.abc import Callable, Sequence
from typing import Any

from reward_models.errors import UserError
from rlhf.config.schema import Config
from rlhf.errors import StageError
from rlhf.stages import evaluate, ppo, reward, sft
from rlhf.stages.base_model import policy_tokenizer

__all__ = ["preflight"]

_PREPARE: dict[str, Callable[..., Any]] = {
    "sft": sft.prepare,
    "reward": reward.prepare,
    "ppo": ppo.prepare,
    "evaluate": evaluate.prepare,
}


def preflight(config: Config, stages: Sequence[str]) -> dict[str, Any]:
    """Prepare the stages that are to run.

    Args:
        config: The configuration.
        stages: Their names.

    Returns:
        What each `run` takes as `inputs`.

    Raises:
        UserError: Something cannot be used; of several stages, the first mistake of each is named.
    """
    tokenizer = policy_tokenizer(config)
    prepared: dict[str, Any] = {}
    mistakes: dict[str, UserError] = {}
    for stage in stages:
        if stage == "evaluate" and "ppo" in mistakes:
            continue  # it plays the same environment with the same rewards
        try:
            prepared[stage] = _PREPARE[stage](config, tokenizer)
        except UserError as error:
            mistakes[stage] = error
    if len(mistakes) > 1:
        found = [f"{stage}: {mistake}" for stage, mistake in mistakes.items()]
        raise StageError("\n".join([f"{len(found)} mistakes, found before anything was trained:", *found]))
    for mistake in mistakes.values():
        raise mistake
    return prepared
