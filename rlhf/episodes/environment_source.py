"""Episodes from text environments: tokens in, tokens out, any number of turns.

All episodes take their turns together, so one call of the generator and one call of the environments (which score in
one batch) serve them all. What the policy wrote is never tokenised again: the next turn's context is its own tokens
plus the environment's new ones.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from envs.errors import EpisodeError
from envs.vector import TextVectorEnv
from reward_models.chat import Message, Text, encode_prompt, turn_suffix_ids
from rlhf.episodes.episode import Episode
from rlhf.episodes.lengths import Lengths, check_prompt
from rlhf.episodes.plan import Start
from rlhf.episodes.text import response_text
from rlhf.generation.generator import Generator, Request, Sample
from rlhf.generation.noise import response_key

_MOST_FAILED = 0.5  # of the episodes of an iteration; more, and the environment is taken to be broken

logger = logging.getLogger(__name__)


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
    failure: str | None = None

    def append(self, token_ids: Sequence[int], logprobs: Sequence[float] | None) -> None:
        """Add tokens of the policy, or of the environment if there are no log-probabilities."""
        own = logprobs is not None
        self.token_ids += token_ids
        self.mask += [own] * len(token_ids)
        self.logprobs += logprobs if logprobs is not None else [0.0] * len(token_ids)
        self.rewards += [0.0] * len(token_ids)


class EnvironmentSource:
    """Plays episodes in a batch of text environments.

    Args:
        environments: The environments, and what scores their episodes.
        tokenizer: The policy's.
        lengths: Limits of an episode.
        stop_strings: Text that ends a response.
        rows: Which rows of the environment are played, if it numbers them; None: all.
        retry: Whether an episode whose environment failed is played once more.
    """

    def __init__(
        self,
        environments: TextVectorEnv,
        tokenizer: PreTrainedTokenizerBase,
        lengths: Lengths,
        stop_strings: Sequence[str] = (),
        *,
        rows: Sequence[int] | None = None,
        retry: bool = False,
    ) -> None:
        self.environments = environments
        self.tokenizer = tokenizer
        self.lengths = lengths
        self.stop_strings = stop_strings
        self.rows = range(environments.num_rows) if rows is None and environments.num_rows is not None else rows
        self.retry = retry

    @property
    def parts(self) -> Sequence["EnvironmentSource"]:
        """Itself: there is one environment."""
        return [self]

    @property
    def num_prompts(self) -> int | None:
        """Rows that are played, if the environment numbers them."""
        return None if self.rows is None else len(self.rows)

    def check_prompts(self, starts: Sequence[Start]) -> None:
        """Begin episodes and see whether their prompts can be answered; nothing is.

        Raises:
            UserError: The environment cannot open a row, or its prompt has no room for a response.
        """
        for start in starts:
            self._reset([start])

    def collect(self, generator: Generator, starts: Sequence[Start], *, seed: int, iteration: int) -> list[Episode]:
        """Play one episode per start; more starts than environments are played in several rounds.

        Raises:
            EpisodeError: The environments failed in most of the episodes.
        """
        episodes = self._rounds(generator, starts, seed, iteration)
        failed = [number for number, episode in enumerate(episodes) if episode.failure is not None]
        if failed and self.retry:
            again = self._rounds(generator, [starts[number] for number in failed], seed, iteration)
            for number, episode in zip(failed, again, strict=True):
                episodes[number] = episode
        _report([episode.failure for episode in episodes if episode.failure is not None], len(episodes))
        return episodes

    def _rounds(self, generator: Generator, starts: Sequence[Start], seed: int, iteration: int) -> list[Episode]:
        size = self.environments.num_envs
        episodes: list[Episode] = []
        for first in range(0, len(starts), size):
            episodes += self._round(generator, starts[first : first + size], seed, iteration)
        return episodes

    def _round(self, generator: Generator, starts: Sequence[Start], seed: int, iteration: int) -> list[Episode]:
        plays = self._reset(starts)
        for _ in range(self.lengths.max_turns):
            active = [play for play in plays if not (play.terminated or play.truncated)]
            if not active:
                break
            sampled = dict(zip(map(id, active), self._sample(generator, active, seed, iteration), strict=True))
            self._step(plays, sampled)
        return [self._finish(play) for play in plays]

    def _reset(self, starts: Sequence[Start]) -> list[_Play]:
        # Environments beyond the last start (a last, smaller round) are reset like the first one and left alone.
        padded = [*starts, *[starts[0]] * (self.environments.num_envs - len(starts))]
        options = None if self.rows is None else [{"index": self.rows[_row(start)]} for start in padded]
        _, infos = self.environments.reset(seed=[start.seed for start in padded], options=options)
        plays = []
        for start, info in zip(starts, infos, strict=False):
            if "failure" in info:
                failed = _Play(start, info["prompt"], [], [], [], [], info, truncated=True, failure=info["failure"])
                plays.append(failed)
                continue
            ids = encode_prompt(
                self.tokenizer, info["messages"] if not isinstance(info["prompt"], str) else info["prompt"]
            )
            number = start.index if self.rows is None else self.rows[_row(start)]
            check_prompt(number, ids, self.lengths, info["prompt"])
            play = _Play(start, info["prompt"], [], [], [], [], info)
            play.append(ids, None)
            plays.append(play)
        return plays

    def _sample(self, generator: Generator, active: Sequence[_Play], seed: int, iteration: int) -> list[Sample]:
        return generator.generate(
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

    def _step(self, plays: Sequence[_Play], sampled: dict[int, Sample]) -> None:
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
        cut_off = []
        for number, play in enumerate(plays):
            if id(play) not in sampled:
                continue
            said, play.info = len(play.info["messages"]), infos[number]
            play.rewards[-1] = float(rewards[number])  # on the last token of the turn
            play.terminated = bool(terminated[number])
            play.truncated = bool(truncated[number]) and not play.terminated  # what ended by itself was not cut off
            play.components |= infos[number].get("components", {})
            play.failure = infos[number].get("failure")
            if not (play.terminated or play.truncated) and not self._continue(play, said):
                cut_off.append(number)
        self._truncate(plays, cut_off)

    def _continue(self, play: _Play, said: int) -> bool:
        """Append what the environment answered behind `said` messages and the policy's own; False: no room is left."""
        if len(play.responses) == self.lengths.max_turns:
            return False
        answer: list[Message] = play.info["messages"][said + 1 :]
        suffix = turn_suffix_ids(self.tokenizer, answer, stopped=play.stop_reason == "eos")
        limit = self.lengths.max_total_tokens
        if limit is not None and len(play.token_ids) + len(suffix) >= limit:
            return False  # the model has no positions left for another turn
        play.append(suffix, None)
        return True

    def _truncate(self, plays: Sequence[_Play], cut_off: Sequence[int]) -> None:
        """End episodes that their environments would go on with: they are scored as they stand."""
        if not cut_off:
            return
        rewards, infos = self.environments.truncate(cut_off)
        for number, reward, info in zip(cut_off, rewards, infos, strict=True):
            plays[number].rewards[-1] += float(reward)
            plays[number].truncated = True
            plays[number].components |= info["components"]

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
            score=math.nan if play.failure is not None else float(sum(play.rewards)),
            failure=play.failure,
            components=play.components,
            columns=play.info.get("columns", {}),
            index=play.start.index,
            sample_index=play.start.sample_index,
        )


def _row(start: Start) -> int:
    return start.index if start.row is None else start.row


def _report(failures: Sequence[str], played: int) -> None:
    """Warn of episodes that are dropped, or give up if they are most of those that were played."""
    if len(failures) > _MOST_FAILED * played:
        raise EpisodeError(
            f"{len(failures)} of {played} episodes failed in their environment, so nothing can be learnt from it. The "
            f"first one: {failures[0]} Mend the environment; `rlhf envs check ID` plays it without a model."
        )
    if failures:
        logger.warning(
            "%d of %d episodes failed in their environment and are left out. The first one: %s",
            len(failures), played, failures[0],
        )  # fmt: skip
