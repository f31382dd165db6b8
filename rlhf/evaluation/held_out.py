"""Which prompts an evaluation asks, and the environments that ask them.

The prompts of `rlhf/Prompts-v0` come from the configuration's data; any other environment brings its own. What is
played here is played by the same code as PPO's rollouts.
"""

import json
import logging
from collections.abc import Iterable, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from reward_models.chat import Text, encode_prompt
from reward_models.combine import CombinedReward
from rlhf.config.data import DataConfig
from rlhf.config.schema import Config
from rlhf.data import Prompt, Tokens, load_rows
from rlhf.data.split import prompt_key
from rlhf.episodes.environment_source import EnvironmentSource
from rlhf.episodes.environments import environment_source
from rlhf.episodes.plan import Start
from rlhf.errors import StageError

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

    def encode(prompt: Text, response: str | None) -> Tokens:
        return Tokens(encode_prompt(tokenizer, prompt))

    # Nothing is trained here, so no rows are set apart for validation.
    unsplit = DataConfig.model_validate({**data.model_dump(), "validation_fraction": 0.0})
    splits = load_rows(unsplit, "prompts", encode=encode, max_tokens=config.ppo.rollout.max_prompt_tokens)
    if splits.skipped:
        logger.warning("evaluate: %s", splits.summary())
    return _each_once(splits.test or splits.train)[: config.evaluate.max_prompts]


def held_out_source(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    scorer: CombinedReward | None,
    prompts: Sequence[Prompt] | None,
    positions: int | None,
) -> EnvironmentSource:
    """Build the environments that ask the prompts.

    Args:
        config: Sections `ppo` and `evaluate` are read.
        tokenizer: The policies'.
        scorer: Scores finished episodes; None leaves it to the environment.
        prompts: What `rlhf/Prompts-v0` asks; None: the configured environment with its own prompts.
        positions: Tokens that the model reads at most.

    Raises:
        StageError: Nothing would score the responses.
        TextEnvError: The environment cannot be made.
    """
    assert config.evaluate is not None
    assert config.ppo is not None
    section = config.evaluate
    if prompts is not None and not config.ppo.rewards:
        raise StageError(
            "evaluate.data gives prompts, but ppo.rewards is empty: nothing scores the responses. Add a component, or "
            "remove evaluate.data, so that the policies are compared by the environment's own rewards."
        )
    count = section.max_prompts or config.ppo.rollout.batch_size
    if prompts is not None:
        count = len(prompts) * section.samples_per_prompt
    return environment_source(
        config.ppo,
        tokenizer,
        scorer,
        prompts=prompts,
        count=min(count, _MOST_AT_ONCE),
        max_positions=positions,
        max_response_tokens=section.max_response_tokens,
    )


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


def _each_once(prompts: Iterable[Prompt]) -> list[Prompt]:
    """Drop repeated rows: weights repeat them in a mix, and an interval would take them for further evidence."""
    rows: dict[tuple[str, str], Prompt] = {}
    for row in prompts:
        columns = json.dumps(dict(row.columns), sort_keys=True, default=repr)
        rows.setdefault((prompt_key(row.prompt), columns), row)
    return list(rows.values())
