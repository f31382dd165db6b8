"""The base class of text environments: observations are messages to a language model, actions are its whole responses.

A subclass says how a row opens an episode and what is answered to a response; this class keeps the conversation,
checks what it is given and writes `info`. It knows no tokens (`token_level`), and neither steps a batch nor calls a
reward model (`vector`).
"""

from __future__ import annotations

import copy
import operator
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

import gymnasium

from envs.errors import TextEnvError
from envs.spaces import UnicodeText
from reward_models.chat import Message, Text, to_messages

Turns: TypeAlias = Literal["one", "several"]
RewardSource: TypeAlias = Literal["environment", "components"]


@dataclass(frozen=True)
class Opening:
    """How an episode begins.

    Attributes:
        prompt: What is said before the first response: a string, or messages that do not end with the assistant's.
        columns: The row's other columns; reward functions receive them.
        details: What the task adds to `info`.
    """

    prompt: Text
    columns: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """What the environment answers to one response.

    Attributes:
        message: The user's next message; None if nothing more is said, which is allowed only at the end.
        reward: What the response earned by the environment's own rules.
        terminated: The task is over.
        truncated: The episode is cut off although the task is not over.
        details: What the task adds to `info`.
    """

    message: str | None
    reward: float
    terminated: bool = False
    truncated: bool = False
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.message is None and not (self.terminated or self.truncated):
            raise TextEnvError(
                "A reply without a message must end the episode: set terminated or truncated, or say something."
            )


class TextEnv(gymnasium.Env, ABC):  # type: ignore[misc]  # Gymnasium is not followed by mypy
    """A conversation as a Gymnasium environment, `gymnasium.Env[str, str]`.

    The observation is the newest message of the user; after the last one it is `""`. The action is the policy's whole
    response. Every `info`, of `reset` and of `step`, holds copies of:

    - `messages`: the conversation so far; while the episode lasts it does not end with the assistant's message;
    - `prompt`: what came before the first response, in the form of the row (string or messages);
    - `columns`: the row's other columns;
    - `index`: the row's number;

    and what the task adds. `reset(options={"index": 3})` chooses row 3, otherwise the row is drawn with the seed.

    Attributes:
        turns: `"one"` if an episode always ends after one response, `"several"` if not. A subclass declares it for
            `rlhf envs`; so may a class of another base.
        reward_source: `"environment"` if the task gives rewards, `"components"` if it gives none, so that reward
            functions and models must score its episodes. Declared likewise.
    """

    turns: ClassVar[Turns | None] = None
    reward_source: ClassVar[RewardSource | None] = None

    def __init__(self) -> None:
        self.observation_space = UnicodeText()
        self.action_space = UnicodeText()
        self._opening: Opening | None = None  # None until the first reset
        self._messages: list[Message] = []
        self._index = 0
        self._over = False

    @property
    @abstractmethod
    def num_rows(self) -> int:
        """Number of rows that `reset` chooses from, at least 1."""

    @abstractmethod
    def open_row(self, index: int) -> Opening:
        """Begin an episode with row `index` (0 to `num_rows` - 1)."""

    @abstractmethod
    def reply(self, response: str) -> Reply:
        """Answer one response of the policy."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: Seeds the choice of rows, now and in later resets.
            options: `{"index": i}` chooses row i.

        Returns:
            The newest message, and `info`.

        Raises:
            TextEnvError: An option is unknown, the index is no integer or out of range, or `open_row` gives no Opening.
        """
        super().reset(seed=seed)
        self._index = self._choose(options or {})
        opening = self.open_row(self._index)
        if not isinstance(opening, Opening):
            raise TextEnvError(
                f"{type(self).__name__}.open_row returned {type(opening).__name__}; it must return envs.Opening."
            )
        self._opening = copy.deepcopy(opening)
        self._messages = to_messages(self._opening.prompt)
        self._over = False
        return self._messages[-1]["content"], self._info(self._opening, self._opening.details)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Hand over the policy's response.

        Returns:
            The user's next message (`""` if none), the reward, terminated, truncated, and `info`.

        Raises:
            TextEnvError: `action` is no string of the action space, no episode is going on, or `reply` gives no Reply.
        """
        if self._opening is None:
            raise TextEnvError("step was called before the first reset; call reset first.")
        if self._over:
            raise TextEnvError("The episode has ended (terminated or truncated); call reset before the next step.")
        self._check_action(action)
        reply = self.reply(action)
        if not isinstance(reply, Reply):
            raise TextEnvError(
                f"{type(self).__name__}.reply returned {type(reply).__name__}; it must return envs.Reply."
            )
        self._messages.append({"role": "assistant", "content": action})
        if reply.message is not None:
            self._messages.append({"role": "user", "content": reply.message})
        self._over = reply.terminated or reply.truncated
        info = self._info(self._opening, reply.details)
        return reply.message or "", float(reply.reward), reply.terminated, reply.truncated, info

    def _choose(self, options: dict[str, Any]) -> int:
        unknown = sorted(set(options) - {"index"})
        if unknown:
            raise TextEnvError(f"Unknown option {unknown[0]!r} of reset; the only one is 'index', the number of a row.")
        if "index" not in options:
            return int(self.np_random.integers(self.num_rows))
        given = options["index"]
        try:
            index = operator.index(given)
        except TypeError:
            index = -1
        if isinstance(given, bool) or not 0 <= index < self.num_rows:
            raise TextEnvError(
                f"options['index'] is {given!r}; there are {self.num_rows} rows, "
                f"so it must be an integer from 0 to {self.num_rows - 1}."
            )
        return index

    def _check_action(self, action: object) -> None:
        if not isinstance(action, str):
            raise TextEnvError(
                f"The action must be the whole response as a string, got {type(action).__name__} {action!r}. "
                "For token ids, wrap the environment in envs.TokenLevel."
            )
        if action not in self.action_space:
            raise TextEnvError(
                f"The response of {len(action)} characters is outside {self.action_space}: "
                "it is too long, or it holds a lone surrogate, which is not Unicode text."
            )

    def _info(self, opening: Opening, details: dict[str, Any]) -> dict[str, Any]:
        # Copies: callers keep infos of many steps, and reward functions may change what they get.
        return {
            "messages": [dict(message) for message in self._messages],
            "prompt": copy.deepcopy(opening.prompt),
            "columns": copy.deepcopy(opening.columns),
            "index": self._index,
            **copy.deepcopy(details),
        }
