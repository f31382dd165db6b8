"""The configured text environments, ready to be played: the one place where training and evaluation build them."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from envs.registry import make_text_env
from envs.tasks.prompts import CheckedPrompts
from envs.vector import TextVectorEnv
from reward_models.combine import CombinedReward
from rlhf.config.ppo import PPOSectionConfig
from rlhf.data import Prompt
from rlhf.episodes.environment_source import EnvironmentSource
from rlhf.episodes.lengths import Lengths

_PROMPTS = "rlhf/Prompts-v0"


def environment_source(
    section: PPOSectionConfig,
    tokenizer: PreTrainedTokenizerBase,
    scorer: CombinedReward | None,
    *,
    prompts: Sequence[Prompt] | None,
    count: int,
    max_positions: int | None,
    max_response_tokens: int | None = None,
) -> EnvironmentSource:
    """Build environments and what scores their episodes.

    Args:
        section: Section `ppo`: environment, and lengths of prompts and responses.
        tokenizer: The policy's.
        scorer: Scores finished episodes; None leaves that to the environments.
        prompts: What `rlhf/Prompts-v0` asks; None: the configured environment with prompts of its own.
        count: Episodes that are played side by side.
        max_positions: Tokens that the model reads at most; None if nothing limits them.
        max_response_tokens: Instead of `rollout.max_response_tokens`.

    Raises:
        TextEnvError: The environment cannot be made.
    """
    id, kwargs, turns = section.environment.id, dict(section.environment.kwargs), section.environment.max_turns
    if prompts is not None:
        rows = CheckedPrompts([{**row.columns, "prompt": row.prompt} for row in prompts])  # once, not in each of them
        id, kwargs = _PROMPTS, {"prompts": rows}
    # Cut off by Gymnasium's wrapper, so that the environment itself ends the episode.
    environments = [make_text_env(id, max_episode_steps=turns, **kwargs) for _ in range(count)]
    rollout = section.rollout
    lengths = Lengths(
        max_prompt_tokens=rollout.max_prompt_tokens,
        max_response_tokens=max_response_tokens or rollout.max_response_tokens,
        min_response_tokens=rollout.min_response_tokens,
        max_turns=turns,
        max_total_tokens=max_positions,
    )
    return EnvironmentSource(TextVectorEnv(environments, scorer), tokenizer, lengths, rollout.stop_strings)
