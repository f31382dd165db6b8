"""The configured text environments, ready to be played: the one place where training and evaluation build them."""

from collections.abc import Sequence
from functools import partial
from math import ceil
from typing import Literal, TypeAlias

from transformers import PreTrainedTokenizerBase

from envs.registry import make_text_env
from envs.tasks.prompts import CheckedPrompts
from envs.vector import TextVectorEnv
from reward_models.combine import CombinedReward
from rlhf.config.ppo import PROMPTS, EnvironmentConfig, MixedEnvironmentConfig, RolloutConfig
from rlhf.config.schema import Config
from rlhf.data import Prompt
from rlhf.data.environment_rows import split_rows
from rlhf.episodes.environment_source import EnvironmentSource
from rlhf.episodes.lengths import Lengths
from rlhf.episodes.mixed_source import MixedSource

Part: TypeAlias = Literal["training", "held_out"]


def training_source(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    scorer: CombinedReward | None,
    *,
    prompts: Sequence[Prompt] | None,
    count: int,
    max_positions: int | None,
) -> EnvironmentSource | MixedSource:
    """Build the environment, or the environments, that training plays.

    Args:
        config: Section `ppo`, and whether rows are held out for section `evaluate`.
        tokenizer: The policy's.
        scorer: Scores finished episodes; None leaves that to the environments.
        prompts: What `rlhf/Prompts-v0` asks, if it is among them.
        count: Episodes of one process in an iteration.
        max_positions: Tokens that the model reads at most; None if nothing limits them.

    Raises:
        TextEnvError: An environment cannot be made.
    """
    assert config.ppo is not None
    section = config.ppo
    total = sum(each.weight for each in section.environments)
    sources = {
        each.label: environment_source(
            each,
            section.rollout,
            tokenizer,
            scorer,
            prompts=prompts if each.asks_data else None,
            count=ceil(count * each.weight / total) if isinstance(each, MixedEnvironmentConfig) else count,
            max_positions=max_positions,
            held_out_fraction=config.held_out_fraction(each),
        )
        for each in section.mixture
    }
    if not section.environments:
        return sources[section.environment.label]
    return MixedSource(sources, {each.label: each.weight for each in section.environments})


def environment_source(
    environment: EnvironmentConfig,
    rollout: RolloutConfig,
    tokenizer: PreTrainedTokenizerBase,
    scorer: CombinedReward | None,
    *,
    prompts: Sequence[Prompt] | None,
    count: int,
    max_positions: int | None,
    max_response_tokens: int | None = None,
    part: Part = "training",
    held_out_fraction: float = 0.0,
) -> EnvironmentSource:
    """Build one kind of environment, and what scores its episodes.

    Args:
        environment: Section `ppo.environment`, or an entry of `ppo.environments`.
        rollout: Section `ppo.rollout`: lengths of prompts and responses, stop strings.
        tokenizer: The policy's.
        scorer: Scores finished episodes; None leaves that to the environments.
        prompts: What `rlhf/Prompts-v0` asks; None: the configured environment with prompts of its own.
        count: Episodes that are played side by side.
        max_positions: Tokens that the model reads at most; None if nothing limits them.
        max_response_tokens: Instead of `rollout.max_response_tokens`.
        part: Which rows are played, if an environment of its own prompts numbers them. Where there is nothing to hold
            out, they are all played in both parts.
        held_out_fraction: Share of these rows that is held out.

    Raises:
        TextEnvError: The environment cannot be made.
    """
    id, kwargs = environment.id, dict(environment.kwargs)
    if prompts is not None:
        checked = CheckedPrompts([{**row.columns, "prompt": row.prompt} for row in prompts])  # once, not in each
        id, kwargs = PROMPTS, {"prompts": checked}
    # The source counts the turns: an environment's own limit stays, and the smaller one cuts off.
    environments = TextVectorEnv(
        [partial(make_text_env, id, **kwargs)] * count,
        scorer,
        on_error="raise" if environment.on_error == "raise" else "drop",
        workers=environment.workers,
        timeout_seconds=environment.timeout_seconds,
    )
    lengths = Lengths(
        max_prompt_tokens=rollout.max_prompt_tokens,
        max_response_tokens=max_response_tokens or rollout.max_response_tokens,
        min_response_tokens=rollout.min_response_tokens,
        max_turns=environment.max_turns,
        max_total_tokens=max_positions,
    )
    rows = None
    if prompts is None and environments.num_rows is not None:
        training, held_out = split_rows(environments.num_rows, held_out_fraction)
        rows = training if part == "training" or not held_out else held_out
    retry = environment.on_error == "retry"
    return EnvironmentSource(environments, tokenizer, lengths, rollout.stop_strings, rows=rows, retry=retry)
