"""Episodes from text environments: tokens in, tokens out, any number of turns.

All episodes take their turns together, so one call of the sampler and one call of the environments (which score in
one batch) serve them all. What the policy wrote is never tokenised again: the next turn's context is its own tokens
plus the environment's new ones.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from envs.vector import TextVectorEnv
from reward_models.chat import Message, Text, encode_prompt, turn_suffix_ids
from rlhf.episodes.episode import Episode
from rlhf.errors import DataError
from rlhf.generation.noise import response_key
from rlhf.generation.sampler import Request, Sampled, Sampler


@dataclass(frozen=True)
class Start:
    """One episode to be played: a prompt by number, and which of several samples of it this is."""

    index: int
    sample_index: int
    seed: int  # of an environment that has no numbered prompts


class EpisodeSource(Protocol):
    """Where episodes come from."""

    @property
    def num_prompts(self) -> int | None:
        """Number of prompts to go through; None if the environment makes them up from a seed."""

    def collect(self, sampler: Sampler, starts: Sequence[Start], *, seed: int, iteration: int) -> list[Episode]:
        """Play the episodes, in the given order."""
        ...


def plan(num_prompts: int | None, episodes: int, samples_per_prompt: int, iteration: int, seed: int) -> list[Start]:
    """Say which episodes an iteration plays, over all processes.

    Prompts come in a fresh permutation each epoch; an iteration that reaches the end of one goes on in the next, so a
    data set smaller than an iteration is used several times. The plan depends on nothing but the arguments.
    """
    prompts = episodes // samples_per_prompt
    first = iteration * prompts
    numbers = range(first, first + prompts)
    if num_prompts is None:
        chosen = list(numbers)
    else:
        epochs = {number // num_prompts for number in numbers}
        orders = {epoch: np.random.default_rng((seed, epoch)).permutation(num_prompts) for epoch in epochs}
        chosen = [int(orders[number // num_prompts][number % num_prompts]) for number in numbers]
    samples = _occurrences(chosen, samples_per_prompt)
    seeds = [int(np.random.SeedSequence((seed, number)).generate_state(1)[0]) for number in numbers]
    return [
        Start(index, sample, environment_seed)
        for index, first_sample, environment_seed in zip(chosen, samples, seeds, strict=True)
        for sample in range(first_sample, first_sample + samples_per_prompt)
    ]


def _occurrences(chosen: Sequence[int], samples_per_prompt: int) -> list[int]:
    """First sample index of each chosen prompt: a prompt that comes again is sampled anew, not repeated."""
    seen: Counter[int] = Counter()
    firsts = []
    for index in chosen:
        firsts.append(seen[index] * samples_per_prompt)
        seen[index] += 1
    return firsts


@dataclass
class Lengths:
    """Limits of an episode, in tokens and turns."""

    max_prompt_tokens: int
    max_response_tokens: int
    min_response_tokens: int = 0
    max_turns: int = 8
    max_total_tokens: int | None = None  # what the model's positions allow

    def room(self, used: int) -> int:
        """Tokens that the next response may have behind `used` ones."""
        if self.max_total_tokens is None:
            return self.max_response_tokens
        return min(self.max_response_tokens, self.max_total_tokens - used)


@dataclass
class _Play:
    """An episode while it is played."""

    start: Start
    prompt: Text
    token_ids: list[int]
    mask: list[bool]
    logprobs: list[float]
    rewards: list[float]
    info: dict[str, Any]
    responses: list[str] = field(default_factory=list)
    stop_reason: str = "length"
    terminated: bool = False
    truncated: bool = False
    components: dict[str, float] = field(default_factory=dict)

    def append(self, token_ids: Sequence[int], logprobs: Sequence[float] | None) -> None:
        """Add tokens of the policy, or of the environment if there are no log-probabilities."""
        own = logprobs is not None
        self.token_ids += token_ids
        self.mask += [own] * len(token_ids)
        self.logprobs += logprobs if logprobs is not None else [0.0] * len(token_ids)
        self.rewards += [0.0] * len(token_ids)


class EnvironmentSource:
    """Plays episodes in a batch of text environments."""

    def __init__(
        self,
        environments: TextVectorEnv,
        tokenizer: PreTrainedTokenizerBase,
        lengths: Lengths,
        stop_strings: Sequence[str] = (),
    ) -> None:
        self.environments = environments
        self.tokenizer = tokenizer
        self.lengths = lengths
        self.stop_strings = stop_strings

    @property
    def num_prompts(self) -> int | None:
        """Rows of the environment, if it numbers them."""
        rows: int | None = getattr(self.environments.envs[0].unwrapped, "num_rows", None)
        return rows

    def collect(self, sampler: Sampler, starts: Sequence[Start], *, seed: int, iteration: int) -> list[Episode]:
        """Play one episode per start; more starts than environments are played in several rounds."""
        size = self.environments.num_envs
        episodes: list[Episode] = []
        for first in range(0, len(starts), size):
            episodes += self._round(sampler, starts[first : first + size], seed, iteration)
        return episodes

    def _round(self, sampler: Sampler, starts: Sequence[Start], seed: int, iteration: int) -> list[Episode]:
        plays = self._reset(starts)
        for _ in range(self.lengths.max_turns):
            active = [play for play in plays if not (play.terminated or play.truncated)]
            if not active:
                break
            sampled = dict(zip(map(id, active), self._sample(sampler, active, seed, iteration), strict=True))
            self._step(plays, sampled)
        return [self._finish(play) for play in plays]

    def _reset(self, starts: Sequence[Start]) -> list[_Play]:
        # Environments beyond the last start (a last, smaller round) are reset like the first one and left alone.
        padded = [*starts, *[starts[0]] * (self.environments.num_envs - len(starts))]
        options = [{"index": start.index} for start in padded] if self.num_prompts is not None else None
        _, infos = self.environments.reset(seed=[start.seed for start in padded], options=options)
        plays = []
        for start, info in zip(starts, infos, strict=False):
            ids = encode_prompt(
                self.tokenizer, info["messages"] if not isinstance(info["prompt"], str) else info["prompt"]
            )
            check_prompt(start.index, ids, self.lengths, info["prompt"])
            play = _Play(start, info["prompt"], [], [], [], [], info)
            play.append(ids, None)
            plays.append(play)
        return plays

    def _sample(self, sampler: Sampler, active: Sequence[_Play], seed: int, iteration: int) -> list[Sampled]:
        return sampler(
            [
                Request(
                    prompt_ids=play.token_ids,
                    key=response_key(seed, iteration, play.token_ids, play.start.sample_index, play.start.index),
                    max_tokens=self.lengths.room(len(play.token_ids)),
                    min_tokens=self.lengths.min_response_tokens,
                )
                for play in active
            ]
        )

    def _step(self, plays: Sequence[_Play], sampled: dict[int, Sampled]) -> None:
        actions: list[str | None] = [None] * self.environments.num_envs
        completion_ids: list[list[int] | None] = [None] * self.environments.num_envs
        for number, play in enumerate(plays):
            if id(play) in sampled:
                result = sampled[id(play)]
                play.append(result.token_ids, result.logprobs)
                play.stop_reason = result.stop_reason
                play.responses.append(response_text(self.tokenizer, result, self.stop_strings))
                actions[number], completion_ids[number] = play.responses[-1], result.token_ids
        _, rewards, terminated, truncated, infos = self.environments.step(actions, completion_ids=completion_ids)
        for number, play in enumerate(plays):
            if id(play) not in sampled:
                continue
            play.rewards[-1] = float(rewards[number])  # on the last token of the turn
            play.terminated, play.truncated = bool(terminated[number]), bool(truncated[number])
            play.components |= infos[number].get("components", {})
            self._continue(play, infos[number])

    def _continue(self, play: _Play, info: dict[str, Any]) -> None:
        said = len(play.info["messages"])
        play.info = info
        if play.terminated or play.truncated:
            return
        if len(play.responses) == self.lengths.max_turns:
            play.truncated = True
            return
        answer: list[Message] = info["messages"][said + 1 :]  # behind the policy's own message
        suffix = turn_suffix_ids(self.tokenizer, answer, stopped=play.stop_reason == "eos")
        limit = self.lengths.max_total_tokens
        if limit is not None and len(play.token_ids) + len(suffix) >= limit:
            play.truncated = True  # the model has no positions left for another turn
        else:
            play.append(suffix, None)

    def _finish(self, play: _Play) -> Episode:
        return Episode(
            prompt=play.prompt,
            token_ids=play.token_ids,
            response_mask=play.mask,
            sampled_logprobs=play.logprobs,
            rewards=play.rewards,
            responses=play.responses,
            messages=play.info["messages"],
            stop_reason=play.stop_reason,
            terminated=play.terminated,
            truncated=play.truncated,
            score=float(sum(play.rewards)),
            components=play.components,
            columns=play.info.get("columns", {}),
            index=play.start.index,
            sample_index=play.start.sample_index,
        )


def check_prompt(index: int, token_ids: Sequence[int], lengths: Lengths, prompt: Any) -> None:
    """Refuse a prompt that cannot be answered.

    Raises:
        DataError: It has no tokens, more than it may have, or so many that the model has no position for a response.
    """
    if not token_ids:
        raise DataError(f"prompt {index} has no tokens: remove it, there is nothing to answer")
    begins = f"the prompt, which begins: {str(prompt)[:80]!r}"
    if len(token_ids) > lengths.max_prompt_tokens:
        raise DataError(
            f"prompt {index} has {len(token_ids)} tokens; max_prompt_tokens is {lengths.max_prompt_tokens}. "
            f"Raise it or shorten {begins}"
        )
    if lengths.room(len(token_ids)) < 1:
        raise DataError(
            f"prompt {index} has {len(token_ids)} tokens; the model reads {lengths.max_total_tokens}, which leaves "
            f"none for a response. Shorten {begins}"
        )


def response_text(tokenizer: PreTrainedTokenizerBase, sampled: Sampled, stop_strings: Sequence[str] = ()) -> str:
    """Return a response as text: without its stop token, and cut before the first stop string."""
    ids = sampled.token_ids[:-1] if sampled.stop_reason == "eos" else sampled.token_ids
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text[: min(cuts)] if (cuts := list(_find(text, stop_strings))) else text


def _find(text: str, stop_strings: Sequence[str]) -> Iterator[int]:
    for stop in stop_strings:
        if stop in text:
            yield text.index(stop)
