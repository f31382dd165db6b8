"""Many text environments stepped together, their finished episodes scored in one call.

The rollout hands in one response for each environment that is still going. Rewards of the environments come back with
the scores of `reward_models.combine` already added, on the step that ended the episode. Nothing is reset by itself, and
tokens occur only as the ids that reward functions may ask for. What an environment returns is checked in `calls`, and
what scoring has to know of an episode stands in `scored`.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv

from envs.calls import checked_reset, checked_step, explained, name_of, run_all
from envs.conversation import with_conversation
from envs.errors import EpisodeError, TextEnvError
from envs.registry import check_text_spaces
from envs.scored import EpisodeState, Info, score_episodes

if TYPE_CHECKING:
    from reward_models.combine import CombinedReward

Flags: TypeAlias = npt.NDArray[np.bool_]
Rewards: TypeAlias = npt.NDArray[np.float64]
OnError: TypeAlias = Literal["raise", "drop"]

_RESPONSE_SHOWN = 200  # characters


class TextVectorEnv(VectorEnv):  # type: ignore[misc]  # Gymnasium is not followed by mypy
    """N text environments side by side. Unlike Gymnasium's own, `infos` is a list with one dict per environment.

    An environment fails if it raises, takes too long, or returns what it must not. `on_error` says what that costs:
    with `"drop"` the episode is over, truncated, with the reward NaN, and its info has `failure`, a sentence; the
    others go on. A failed environment is made anew if it came as a function.

    Args:
        envs: Environments with text spaces, or functions that make them; at least one.
        scorer: Scores finished episodes; None leaves the environments' own rewards alone.
        on_error: Whether a failing environment raises `EpisodeError` or loses its episode.
        workers: Environments that are reset or stepped at the same time, each in a thread. Each has a random generator
            of its own, so their number changes no result, unless environments share state.
        timeout_seconds: A reset or step that takes longer has failed; then `envs` must be functions.

    Attributes:
        failures: How often each component of the scorer has failed so far, by name.

    Raises:
        TextEnvError: There is no environment, one occurs twice, one has a space that is not text, or there is a
            timeout, but an environment that cannot be made anew.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": [], "autoreset_mode": AutoresetMode.DISABLED}

    def __init__(
        self,
        envs: Sequence[Any | Callable[[], Any]],
        scorer: CombinedReward | None = None,
        *,
        on_error: OnError = "raise",
        workers: int = 1,
        timeout_seconds: float | None = None,
    ) -> None:
        if not len(envs):
            raise TextEnvError("envs is empty; at least one environment is needed.")
        self._makers = [None if isinstance(env, gymnasium.Env) else env for env in envs]
        if timeout_seconds is not None and None in self._makers:
            raise TextEnvError(
                f"timeout_seconds is {timeout_seconds:g}, but envs holds environments: one that is given up must be "
                "made anew, so give functions that make them."
            )
        made = [env if make is None else make() for env, make in zip(envs, self._makers, strict=True)]
        if len({id(env) for env in made}) < len(made):
            raise TextEnvError("The same environment object occurs twice in envs; make each one separately.")
        for i, env in enumerate(made):
            check_text_spaces(env, f"envs[{i}] ({env})")
        self.envs = [with_conversation(env) for env in made]
        self.scorer = scorer
        self.on_error, self.workers, self.timeout_seconds = on_error, workers, timeout_seconds
        self.failures: Counter[str] = Counter()
        self.num_envs = len(self.envs)
        self.single_observation_space = self.envs[0].observation_space
        self.single_action_space = self.envs[0].action_space
        self.observation_space = spaces.Tuple([copy.deepcopy(env.observation_space) for env in self.envs])
        self.action_space = spaces.Tuple([copy.deepcopy(env.action_space) for env in self.envs])
        self._observations = [""] * self.num_envs
        self._episodes: list[EpisodeState] = []  # empty until the first reset
        self._terminated = np.zeros(self.num_envs, dtype=np.bool_)
        self._truncated = np.zeros(self.num_envs, dtype=np.bool_)

    @property
    def num_rows(self) -> int | None:
        """Rows that `options={"index": i}` chooses from; None if the environments do not number them."""
        rows: int | None = getattr(self.envs[0].unwrapped, "num_rows", None)
        return rows

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
            EpisodeError: An environment failed, and `on_error` is `"raise"`.
        """
        if isinstance(seed, int | np.integer):
            seed = range(seed, seed + self.num_envs)
        # Gymnasium refuses NumPy's integers.
        seeds = [None if each is None else int(each) for each in self._one_each(seed, "seed")]
        choices = [options] * self.num_envs if isinstance(options, dict) else self._one_each(options, "options")
        self._episodes = []  # if an environment refuses, a step needs another reset
        begin = [
            partial(checked_reset, env, own_seed, copy.copy(choice))
            for env, own_seed, choice in zip(self.envs, seeds, choices, strict=True)
        ]
        outcomes = run_all(begin, self.workers, self.timeout_seconds)
        self._terminated[:] = False
        self._truncated[:] = False
        episodes = [EpisodeState(_origin(own, choice)) for own, choice in zip(seeds, choices, strict=True)]
        infos = [self._begun(i, episode, outcomes[i]) for i, episode in enumerate(episodes)]
        self._episodes = episodes
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
        - `scored`: False if no component applied, or the environment failed. Then score and reward are NaN, and the
          episode must stay out of the update.

        The scorer sees `info["prompt"]` in the row's form, and the response in the form that TRL gives it: a string, or
        messages if the prompt is messages. After several responses the prompt is the conversation before the last one,
        as messages. If one call would mix both forms, all become messages.

        Args:
            actions: One response per environment; None for an environment that is not to be stepped.
            completion_ids: The policy's token ids of each response, passed on to the scorer.

        Returns:
            Observations (N,), rewards (N,) float64, terminated (N,), truncated (N,) and infos (N,).

        Raises:
            TextEnvError: The lengths do not fit, or a response is meant for an environment that is not in an episode.
            EpisodeError: An environment failed, and `on_error` is `"raise"`.
        """
        responses = self._one_each(actions, "actions")
        ids = None if completion_ids is None else self._one_each(completion_ids, "completion_ids")
        self._check_step(responses, ids)
        rewards = np.zeros(self.num_envs, dtype=np.float64)
        infos: list[Info] = [{} for _ in self.envs]
        stepped = [i for i, response in enumerate(responses) if response is not None]
        calls = [partial(checked_step, self.envs[i], responses[i]) for i in stepped]
        for i, outcome in zip(stepped, run_all(calls, self.workers, self.timeout_seconds), strict=True):
            episode = self._episodes[i]
            episode.response, episode.completion_ids = responses[i], None if ids is None else ids[i]
            rewards[i], infos[i] = self._stepped(i, episode, outcome)
        ended = [i for i in stepped if self._episodes[i].over and "failure" not in infos[i]]
        self._score(ended, infos)
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
        infos = [dict(episode.info) for episode in self._episodes]
        self._score(numbers, infos)
        for i in numbers:
            self._episodes[i].over, self._truncated[i] = True, True
        chosen = [infos[i] for i in numbers]
        return np.array([info["score"] for info in chosen], dtype=np.float64), chosen

    def close_extras(self, **kwargs: Any) -> None:
        """Close every environment."""
        for env in self.envs:
            env.close()

    def _begun(self, i: int, episode: EpisodeState, outcome: Any) -> Info:
        """Write down how environment `i` began its episode; return its info."""
        if isinstance(outcome, Exception):
            return self._failed(i, episode, outcome, "reset")
        self._observations[i], info = outcome
        episode.prompt, episode.messages = copy.deepcopy((info["prompt"], info["messages"]))
        episode.info = dict(info)
        return dict(info)

    def _stepped(self, i: int, episode: EpisodeState, outcome: Any) -> tuple[float, Info]:
        """Write down what environment `i` answered; return its reward and info."""
        if isinstance(outcome, Exception):
            said = f"step {episode.turns + 1}, given the response {episode.response[:_RESPONSE_SHOWN]!r},"
            return np.nan, self._failed(i, episode, outcome, said)
        self._observations[i], reward, self._terminated[i], self._truncated[i], info = outcome
        episode.context, episode.messages = episode.messages, copy.deepcopy(info["messages"])
        episode.turns += 1
        episode.over = bool(self._terminated[i] or self._truncated[i])
        episode.info = {**info, "env_reward": reward, "score": 0.0, "components": {}, "scored": True}
        return reward, dict(episode.info)

    def _failed(self, i: int, episode: EpisodeState, error: Exception, where: str) -> Info:
        """End the episode of an environment that failed, and make the environment anew."""
        env, make = self.envs[i], self._makers[i]
        message = f"{name_of(env)} failed in {where} of the episode with {episode.origin}: {explained(error)}"
        if self.on_error == "raise":
            raise EpisodeError(message) from error
        if make is not None:
            self.envs[i] = with_conversation(make())
        episode.over, self._truncated[i] = True, True
        known = {"messages": episode.messages, "prompt": episode.prompt, "columns": episode.info.get("columns", {})}
        unscored = {"env_reward": np.nan, "score": np.nan, "components": {}, "scored": False}
        return {**copy.deepcopy(known), **unscored, "failure": message}

    def _score(self, ended: Sequence[int], infos: Sequence[Info]) -> None:
        if self.scorer is not None and ended:
            chosen = [self._episodes[i] for i in ended]
            self.failures.update(score_episodes(self.scorer, chosen, [infos[i] for i in ended]))

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


def _origin(seed: int | None, choice: dict[str, Any] | None) -> str:
    index = (choice or {}).get("index")
    return f"row {index}" if index is not None else f"seed {seed}" if seed is not None else "no seed"
