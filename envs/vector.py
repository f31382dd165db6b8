"""Many text environments stepped together, their finished episodes scored in one call.

The rollout hands in one response for each environment that is still going. Rewards of the environments come back with
the scores of `reward_models.combine` already added, on the step that ended the episode. Nothing is reset by itself,
nothing runs in parallel, and tokens occur only as the ids that reward functions may ask for.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from envs.conversation import with_conversation
from envs.errors import TextEnvError
from envs.registry import check_text_spaces
from reward_models.chat import Message, Text, to_messages

if TYPE_CHECKING:
    from reward_models.combine import CombinedReward

Info = dict[str, Any]
Flags = npt.NDArray[np.bool_]
Rewards = npt.NDArray[np.float64]


@dataclass
class _Episode:
    """What scoring needs to know of one environment's episode."""

    prompt: Text
    messages: list[Message]  # the conversation so far
    context: list[Message]  # the conversation before the last response
    turns: int = 0
    over: bool = False
    info: Info = field(default_factory=dict)  # of the last step
    completion_ids: list[int] | None = None  # of the last response

    @property
    def scored_prompt(self) -> Text:
        return self.prompt if self.turns == 1 else self.context


class TextVectorEnv(VectorEnv):  # type: ignore[misc]  # Gymnasium is not followed by mypy
    """N text environments side by side. Unlike Gymnasium's own, `infos` is a list with one dict per environment.

    Args:
        envs: Environments with text spaces, or functions that make them; at least one.
        scorer: Scores finished episodes; None leaves the environments' own rewards alone.

    Attributes:
        failures: How often each component of the scorer has failed so far, by name.

    Raises:
        TextEnvError: There is no environment, one occurs twice, or one has a space that is not text.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "autoreset_mode": AutoresetMode.DISABLED}

    def __init__(self, envs: Sequence[Any | Callable[[], Any]], scorer: CombinedReward | None = None) -> None:
        made = [env if isinstance(env, gymnasium.Env) else env() for env in envs]
        if not made:
            raise TextEnvError("envs is empty; at least one environment is needed.")
        if len({id(env) for env in made}) < len(made):
            raise TextEnvError("The same environment object occurs twice in envs; make each one separately.")
        for i, env in enumerate(made):
            check_text_spaces(env, f"envs[{i}] ({env})")
        self.envs = [with_conversation(env) for env in made]
        self.scorer = scorer
        self.failures: Counter[str] = Counter()
        self.num_envs = len(self.envs)
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        self.observation_space = spaces.Tuple([copy.deepcopy(env.observation_space) for env in self.envs])
        self.action_space = spaces.Tuple([copy.deepcopy(env.action_space) for env in self.envs])
        self._observations = [""] * self.num_envs
        self._episodes: list[_Episode] = []  # empty until the first reset
        self._terminated = np.zeros(self.num_envs, dtype=np.bool_)
        self._truncated = np.zeros(self.num_envs, dtype=np.bool_)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | Sequence[dict[str, Any] | None] | None = None,
    ) -> tuple[tuple[str, ...], list[Info]]:
        """Begin an episode in every environment.

        Args:
            seed: One number s gives environment i the seed s + i; a sequence gives each its own.
            options: One dict for all, or a sequence with one for each, such as `[{"index": 4}, {"index": 9}]`.

        Returns:
            Observations (N,) and infos (N,).

        Raises:
            TextEnvError: A sequence does not have N entries, or an environment refuses its option.
        """
        if isinstance(seed, int | np.integer):
            seed = range(seed, seed + self.num_envs)
        seeds = self._one_each(seed, "seed")
        choices = [options] * self.num_envs if isinstance(options, dict) else self._one_each(options, "options")
        infos: list[Info] = []
        episodes = []
        self._episodes = []  # if an environment refuses, a step needs another reset
        for i, env in enumerate(self.envs):
            own_seed = None if seeds[i] is None else int(seeds[i])  # Gymnasium refuses NumPy's integers
            self._observations[i], info = env.reset(seed=own_seed, options=copy.copy(choices[i]))
            prompt, messages = copy.deepcopy((info["prompt"], info["messages"]))
            episodes.append(_Episode(prompt, messages, context=[]))
            infos.append(info)
        self._episodes = episodes
        self._terminated[:] = False
        self._truncated[:] = False
        return tuple(self._observations), infos

    def step(
        self, actions: Sequence[str | None], *, completion_ids: Sequence[list[int] | None] | None = None
    ) -> tuple[tuple[str, ...], Rewards, Flags, Flags, list[Info]]:
        """Hand each response to its environment, then score the episodes that ended, in one call.

        An environment that is not stepped (None) keeps its observation and flags; its reward is 0 and its info `{}`.
        The info of one that is stepped has, besides what the environment says:

        - `env_reward`: the environment's own reward for this response, float;
        - `score`: the scorer's total, 0.0 unless the episode ended in this step and there is a scorer;
        - `components`: the scorer's raw values by name, NaN where one did not apply; `{}` where nothing was scored;
        - `scored`: False if no component applied. Then score and reward are NaN, and the episode must stay out of the
          update.

        The scorer sees `info["prompt"]` in the row's form, and the response in the form that TRL gives it: a string, or
        messages if the prompt is messages. After several responses the prompt is the conversation before the last one,
        as messages. If one call would mix both forms, all become messages.

        Args:
            actions: One response per environment; None for an environment that is not to be stepped.
            completion_ids: The policy's token ids of each response, passed on to the scorer.

        Returns:
            Observations (N,), rewards (N,) float64, terminated (N,), truncated (N,) and infos (N,).

        Raises:
            TextEnvError: The lengths do not fit, a response is meant for an environment that is not in an episode, or
                an environment returns a reward that is not finite.
        """
        responses = self._one_each(actions, "actions")
        ids = None if completion_ids is None else self._one_each(completion_ids, "completion_ids")
        self._check_step(responses, ids)
        rewards = np.zeros(self.num_envs, dtype=np.float64)
        infos: list[Info] = [{} for _ in self.envs]
        stepped = [i for i, response in enumerate(responses) if response is not None]
        for i in stepped:
            rewards[i], infos[i] = self._step_one(i, responses[i])
            self._episodes[i].info, self._episodes[i].completion_ids = infos[i], None if ids is None else ids[i]
        ended = [i for i in stepped if self._episodes[i].over]
        if self.scorer is not None and ended:
            self._score(self.scorer, ended, responses, ids, infos)
            for i in ended:
                rewards[i] += infos[i]["score"]  # NaN stays NaN: nobody could score this episode
        return tuple(self._observations), rewards, self._terminated.copy(), self._truncated.copy(), infos

    def truncate(self, numbers: Sequence[int]) -> tuple[Rewards, list[Info]]:
        """Cut off the episodes of some environments, which would go on, and score them as they stand.

        For whoever cannot go on, because a model has no positions left, say. The environments are not asked: until the
        next reset they are not stepped again.

        Args:
            numbers: Environments (n,) that are in an episode and have been stepped.

        Returns:
            What the scorer gives (n,), and infos (n,) as of the last step, with `score`, `components` and `scored`.

        Raises:
            TextEnvError: An environment is not in an episode, or nothing was said in it yet.
        """
        for i in numbers:
            if not self._episodes or self._episodes[i].over or not self._episodes[i].turns:
                raise TextEnvError(
                    f"envs[{i}] is not within an episode that has a response; only such a one is cut off."
                )
        infos: list[Info] = [dict(episode.info) for episode in self._episodes]
        responses = [episode.messages[len(episode.context)]["content"] if episode.turns else None
                     for episode in self._episodes]  # fmt: skip
        ids = [episode.completion_ids for episode in self._episodes]
        if self.scorer is not None and numbers:
            known = all(ids[i] is not None for i in numbers)
            self._score(self.scorer, list(numbers), responses, ids if known else None, infos)
        for i in numbers:
            self._episodes[i].over, self._truncated[i] = True, True
        chosen = [infos[i] for i in numbers]
        return np.array([info["score"] for info in chosen], dtype=np.float64), chosen

    def close_extras(self, **kwargs: Any) -> None:
        """Close every environment."""
        for env in self.envs:
            env.close()

    def _step_one(self, i: int, response: str) -> tuple[float, Info]:
        self._observations[i], given, terminated, truncated, info = self.envs[i].step(response)
        reward = float(given)
        if not math.isfinite(reward):
            raise TextEnvError(f"envs[{i}] ({self.envs[i]}) returned the reward {reward}; it must be a finite number.")
        self._terminated[i], self._truncated[i] = terminated, truncated
        episode = self._episodes[i]
        episode.context, episode.messages = episode.messages, copy.deepcopy(info["messages"])
        episode.turns += 1
        episode.over = bool(terminated or truncated)
        return reward, {**info, "env_reward": reward, "score": 0.0, "components": {}, "scored": True}

    def _score(
        self,
        scorer: CombinedReward,
        ended: list[int],
        responses: list[Any],
        ids: list[Any] | None,
        infos: list[Info],
    ) -> None:
        """Score the environments `ended` and write the results into their `infos`."""
        prompts = [self._episodes[i].scored_prompt for i in ended]
        if any(isinstance(prompt, list) for prompt in prompts):
            prompts = [to_messages(prompt) for prompt in prompts]
        completions = [_completion(prompt, responses[i]) for prompt, i in zip(prompts, ended, strict=True)]
        columns = _columns([infos[i]["columns"] for i in ended])
        if ids is not None:
            columns["completion_ids"] = [ids[i] for i in ended]
        scores = scorer(prompts, completions, **columns)
        for k, i in enumerate(ended):
            infos[i]["score"] = float(scores.total[k])
            infos[i]["components"] = {name: float(values[k]) for name, values in scores.components.items()}
            infos[i]["scored"] = not math.isnan(infos[i]["score"])
        self.failures.update(scores.failures)

    def _check_step(self, responses: list[Any], ids: list[Any] | None) -> None:
        """Check every response before any environment is stepped, so that a mistake leaves all as they were."""
        if not self._episodes:
            raise TextEnvError("step was called before the first reset, or after one that failed; call reset first.")
        for i, response in enumerate(responses):
            if response is None:
                continue
            if not isinstance(response, str):
                raise TextEnvError(
                    f"actions[{i}] is {type(response).__name__} {response!r}; it must be a string, or None."
                )
            if self._episodes[i].over:
                raise TextEnvError(
                    f"actions[{i}] is a response, but the episode of envs[{i}] has ended; "
                    "pass None for it until the next reset."
                )
            if ids is not None and ids[i] is None:
                raise TextEnvError(f"completion_ids[{i}] is None, but actions[{i}] is a response; pass its token ids.")

    def _one_each(self, values: Any, name: str) -> list[Any]:
        """Return `values` as a list of N; for seeds and options None means N times None."""
        if values is None and name in ("seed", "options"):
            return [None] * self.num_envs
        if isinstance(values, str) or not isinstance(values, Sequence | np.ndarray) or len(values) != self.num_envs:
            raise TextEnvError(
                f"{name} is {values!r}; it must be a sequence with one entry for each of the {self.num_envs} "
                "environments."
            )
        return list(values)


def _completion(prompt: Text, response: str) -> Text:
    return response if isinstance(prompt, str) else [{"role": "assistant", "content": response}]


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Turn the columns of each episode into one list per column; None where an episode lacks it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [copy.deepcopy(row.get(name)) for row in rows] for name in names}
