"""What an evaluation asks: held-out prompts of the data, or held-out rows or seeds of environments without data.

What is played here is played by the same code as PPO's rollouts.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from transformers import PreTrainedTokenizerBase

from reward_models.chat import Text, encode_prompt
from reward_models.combine import CombinedReward
from rlhf.config.data import DataConfig
from rlhf.config.ppo import EnvironmentConfig
from rlhf.config.schema import Config
from rlhf.data import Prompt, Tokens, load_rows
from rlhf.data.environment_rows import split_rows
from rlhf.data.split import prompt_key
from rlhf.episodes.environment_source import EnvironmentSource
from rlhf.episodes.environments import environment_source
from rlhf.episodes.episode import Episode
from rlhf.episodes.plan import Start
from rlhf.generation.generator import Generator

# Names the noise of an evaluation. Training counts from 0, so no number that it drew is drawn here.
_ITERATION = -1
_MOST_AT_ONCE = 256  # episodes played side by side
_SEEDS = 64  # of an environment that draws its tasks from a seed, unless evaluate.max_prompts says otherwise

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Part:
    """What one environment is asked.

    Attributes:
        name: What results call the environment.
        source: Plays it.
        starts: Its episodes, the samples of a prompt one behind the other.
        asked: What these prompts are, in words.
    """

    name: str
    source: EnvironmentSource
    starts: list[Start]
    asked: str

    @property
    def prompts(self) -> int:
        """Different prompts."""
        return len({start.index for start in self.starts})


@dataclass(frozen=True)
class HeldOut:
    """Everything that an evaluation asks."""

    parts: list[Part]

    @property
    def prompts(self) -> int:
        """Different prompts of all environments."""
        return sum(part.prompts for part in self.parts)

    @property
    def asked(self) -> str:
        """What is asked, in words."""
        return self.parts[0].asked if len(self.parts) == 1 else "; ".join(f"{p.prompts} {p.asked}" for p in self.parts)

    @property
    def failures(self) -> dict[str, int]:
        """How often each reward component has failed."""
        scorers = [part.source.environments.failures for part in self.parts]
        return {name: sum(failures[name] for failures in scorers) for failures in scorers for name in failures}

    def play(self, generator: Generator, seed: int) -> list[Episode]:
        """Play all episodes, those of the first environment first; prompts are numbered through."""
        episodes: list[Episode] = []
        for part in self.parts:
            before = len({episode.index for episode in episodes})
            played = part.source.collect(generator, part.starts, seed=seed, iteration=_ITERATION)
            episodes += [replace(each, environment=part.name, index=before + each.index) for each in played]
        return episodes


def held_out(
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    scorer: CombinedReward | None,
    prompts: Sequence[Prompt] | None,
    positions: int | None,
) -> HeldOut:
    """Build the environments, and say what is played in each.

    Args:
        config: Sections `ppo` and `evaluate` are read.
        tokenizer: The policies'.
        scorer: Scores finished episodes; None leaves it to the environments.
        prompts: From `held_out_prompts`.
        positions: Tokens that the model reads at most.

    Raises:
        TextEnvError: An environment cannot be made.
    """
    assert config.ppo is not None
    return HeldOut([_part(each, config, tokenizer, scorer, prompts, positions) for each in config.ppo.mixture])


def held_out_prompts(config: Config, tokenizer: PreTrainedTokenizerBase) -> list[Prompt] | None:
    """Load the prompts to ask, each once, in the order of their hashes.

    They are those of `evaluate.data`: its test split if it has a `test_fraction`, else all of it. Without
    `evaluate.data` they are the test split of `ppo.data`.

    Returns:
        At most `evaluate.max_prompts` prompts; None if there are no data, and the environment brings its own.

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


def _part(
    environment: EnvironmentConfig,
    config: Config,
    tokenizer: PreTrainedTokenizerBase,
    scorer: CombinedReward | None,
    prompts: Sequence[Prompt] | None,
    positions: int | None,
) -> Part:
    assert config.evaluate is not None
    assert config.ppo is not None
    section = config.evaluate
    asked = prompts if environment.asks_data else None
    count = section.max_prompts or config.ppo.rollout.batch_size
    if asked is not None:
        count = len(asked) * section.samples_per_prompt
    source = environment_source(
        environment,
        config.ppo.rollout,
        tokenizer,
        scorer,
        prompts=asked,
        count=min(count, _MOST_AT_ONCE),
        max_positions=positions,
        max_response_tokens=section.max_response_tokens,
        part="held_out",
        held_out_fraction=config.held_out_fraction(environment),
    )
    words = "held-out prompts" if asked is not None else _describe(source, environment, config)
    return Part(environment.label, source, _plan_starts(source, config), words)


def _describe(source: EnvironmentSource, environment: EnvironmentConfig, config: Config) -> str:
    """Say whether rows or seeds are played, and whether training draws from the same ones."""
    if source.environments.num_rows is None:
        return f"held-out seeds of {environment.label}"
    _, apart = split_rows(source.environments.num_rows, config.held_out_fraction(environment))
    whose = "held-out rows of {}" if apart else "rows of {} that training draws from, too"
    return whose.format(environment.label)


def _plan_starts(source: EnvironmentSource, config: Config) -> list[Start]:
    """List the episodes that each policy plays: the samples of a prompt one behind the other."""
    assert config.evaluate is not None
    prompts, most = source.num_prompts, config.evaluate.max_prompts
    count = min((number for number in (prompts, most) if number is not None), default=_SEEDS)
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


def groups_of(episodes: Sequence[Episode], config: Config) -> list[str] | None:
    """Say which group each episode belongs to: a value of column `evaluate.by`, a data source, or an environment.

    Returns:
        (N,) names; None if there is nothing to tell apart.
    """
    assert config.evaluate is not None
    assert config.ppo is not None
    if config.evaluate.by is not None:
        return [str(episode.columns.get(config.evaluate.by)) for episode in episodes]
    data = config.evaluate.data or config.ppo.data
    sources = _sources(data) if data is not None and len(data.sources) > 1 else {}
    named = [sources.get(prompt_key(episode.prompt), episode.environment) for episode in episodes]
    return named if len(set(named)) > 1 else None


def _sources(data: DataConfig) -> dict[str, str]:
    """Prompt -> the source that it stands in."""
    found: dict[str, str] = {}
    for source in data.sources:
        alone = data.model_copy(update={"sources": [source], "validation_fraction": 0.0, "test_fraction": 0.0})
        for row in load_rows(alone, "prompts").train:
            found.setdefault(prompt_key(row.prompt), source.path)
    return found
