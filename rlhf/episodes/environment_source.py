"""Episodes from text environments: tokens in, tokens out, any number of turns.

All episodes take their turns together, so one call of the generator and one call of the environments (which score in
one batch) serve them all. What the policy wrote is never tokenised again: the next turn's context is its own tokens
plus the environment's new ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from envs.vector import TextVectorEnv
from reward_models.chat import Message, Text, encode_prompt, turn_suffix_ids
from rlhf.episodes.episode import Episode
from rlhf.episodes.lengths import Lengths, check_prompt
from rlhf.episodes.plan import Start
from rlhf.episodes.text import response_text
from rlhf.generation.generator import Generator, Request, Sample
from rlhf.generation.noise import response_key


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

    def check_prompts(self, starts: Sequence[Start]) -> None:
        """Begin episodes and see whether their prompts can be answered; nothing is.

        Raises:
            UserError: The environment cannot open a row, or its prompt has no room for a response.
        """
        for start in starts:
            self._reset([start])

    def collect(self, generator: Generator, starts: Sequence[Start], *, seed: int, iteration: int) -> list[Episode]:
        """Play one episode per start; more starts than environments are played in several rounds."""
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
            score=float(sum(play.rewards)),
            components=play.components,
            columns=play.info.get("columns", {}),
            index=play.start.index,
            sample_index=play.start.sample_index,
        )
