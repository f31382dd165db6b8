"""Which prompts an evaluation asks, and the environments that ask them.

The prompts of `rlhf/Prompts-v0` come from the configuration's data; any other environment brings its own. What is
played here is played by the same code as PPO's rollouts.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from envs.registry import make_text_env
from envs.tasks.prompts import PromptsEnv
from envs.vector import TextVectorEnv
from reward_models.chat import Text, encode_prompt
from reward_models.combine import CombinedReward
from rlhf.config.data import DataConfig
from rlhf.config.ppo import PPOSectionConfig
from rlhf.config.schema import Config
from rlhf.data import Prompt, load_rows
from rlhf.data.split import prompt_key
from rlhf.episodes.rollout import EnvironmentSource, Lengths, Start
from rlhf.errors import StageError

__all__ = ["environment_source", "held_out_prompts", "plan_starts"]

_MOST_AT_ONCE = 256  # episodes played side by side

logger = logging.getLogger(__name__)


def held_out_prompts(config: Config, tokenizer: PreTrainedTokenizerBase) -> list[Prompt] | None:
    """Load the prompts to ask, each once, in the order of their hashes.

    They are those of `evaluate.data`: its test split if it has a `test_fraction`, else all of it. Without
    `evaluate.data` they are the test split of `ppo.data`.

    Returns:
        At most `evaluate.max_prompts` prompts; None if the environment brings its own.

    Raises:
        DataError: The data cannot be read, a row is bad, or a prompt has more than `ppo.rollout.max_prompt_tokens`.
    """
    assert config.evaluate is not None
    assert config.ppo is not None
    data = config.evaluate.data or config.ppo.data
    if data is None:
        return None

    def encode(prompt: Text, response: str | None) -> list[int]:
        return encode_prompt(tokenizer, prompt)

    # Nothing is trained here, so no rows are set apart for validation.
    unsplit = DataConfig.model_validate({**data.model_dump(), "validation_fraction": 0.0})
    splits = load_rows(unsplit, "prompts", encode=encode, max_tokens=config.ppo.rollout.max_prompt_tokens)
    if splits.skipped:
        logger.warning("evaluate: %s", splits.summary())
    return _each_once(splits.test or splits.train)[: config.evaluate.max_prompts]


def environment_source(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    scorer: CombinedReward | None,
    prompts: Sequence[Prompt] | None,
    max_total_tokens: int | None,
) -> EnvironmentSource:
    """Build the environments that ask the prompts.

    Args:
        config: Sections `ppo` and `evaluate` are read.
        tokenizer: The policies'.
        scorer: Scores finished episodes; None leaves it to the environment.
        prompts: What `rlhf/Prompts-v0` asks; None: the configured environment with its own prompts.
        max_total_tokens: Positions that the model has.

    Raises:
        StageError: Nothing would score the responses.
        TextEnvError: The environment cannot be made.
    """
    assert config.evaluate is not None
    assert config.ppo is not None
    if prompts is not None:
        if scorer is None:
            raise StageError(
                "evaluate.data gives prompts, but ppo.rewards is empty: nothing scores the responses. Add a component, "
                "or remove evaluate.data, so that the policies are compared by the environment's own rewards."
            )
        rows = [{**prompt.columns, "prompt": prompt.prompt} for prompt in prompts]
        count = min(len(rows) * config.evaluate.samples_per_prompt, _MOST_AT_ONCE)
        environments: list[Any] = [PromptsEnv(rows) for _ in range(count)]
    else:
        environments = _own_environments(config.ppo, config.evaluate.max_prompts)
    rollout = config.ppo.rollout
    lengths = Lengths(
        max_prompt_tokens=rollout.max_prompt_tokens,
        max_response_tokens=config.evaluate.max_response_tokens or rollout.max_response_tokens,
        min_response_tokens=rollout.min_response_tokens,
        max_turns=1 if prompts is not None else config.ppo.environment.max_turns,
        max_total_tokens=max_total_tokens,
    )
    return EnvironmentSource(TextVectorEnv(environments, scorer), tokenizer, lengths, rollout.stop_strings)


def plan_starts(source: EnvironmentSource, config: Config) -> list[Start]:
    """List the episodes that each policy plays: the samples of a prompt one behind the other.

    Raises:
        StageError: The environment has no end of prompts, and the configuration does not say how many to ask.
    """
    assert config.evaluate is not None
    prompts, most = source.num_prompts, config.evaluate.max_prompts
    if prompts is None and most is None:
        raise StageError(
            "evaluate.max_prompts is missing: this environment makes up its prompts from a seed, so say how many to ask"
        )
    count = min(number for number in (prompts, most) if number is not None)
    # Only for environments without numbered prompts; spawn_key keeps these seeds apart from those of training.
    seeds = np.random.SeedSequence(config.seed, spawn_key=(0,)).generate_state(count)
    return [
        Start(index, sample, int(seeds[index]))
        for index in range(count)
        for sample in range(config.evaluate.samples_per_prompt)
    ]


def _own_environments(ppo: PPOSectionConfig, max_prompts: int | None) -> list[Any]:
    count = min(max_prompts or ppo.rollout.batch_size, _MOST_AT_ONCE)
    # Cut off by Gymnasium's wrapper, not by the player: only an episode that its environment ends is scored.
    options = {**ppo.environment.kwargs, "max_episode_steps": ppo.environment.max_turns}
    return [make_text_env(ppo.environment.id, **options) for _ in range(count)]


def _each_once(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Drop repeated rows: weights repeat them in a mix, and an interval would take them for further evidence."""
    rows: dict[tuple[str, str], Prompt] = {}
    for row in prompts:
        columns = json.dumps(dict(row.columns), sort_keys=True, default=repr)
        rows.setdefault((prompt_key(row.prompt), columns), row)
    return list(rows.values())
