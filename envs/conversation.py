"""Conversations of environments that only know observations and actions.

`TextEnv` writes the conversation into `info`; a third party's environment with plain text spaces need not. This wrapper
writes it there, so that `vector` and `token_level` read `info` alone. It changes no observation, action or reward.
"""

from __future__ import annotations

import copy
from typing import Any

import gymnasium
from gymnasium.utils import RecordConstructorArgs

from envs.base import TextEnv
from envs.calls import checked_reset, checked_step
from envs.errors import TextEnvError
from reward_models.chat import Message, to_messages
from reward_models.errors import ChatFormatError


def with_conversation(env: Any) -> Any:
    """Return `env` such that its infos hold `messages`, `prompt` and `columns`; itself, if they do already."""
    layer = env
    while isinstance(layer, gymnasium.Wrapper):
        if isinstance(layer, Conversation):
            return env
        layer = layer.env
    return env if isinstance(layer, TextEnv) else Conversation(env)


class Conversation(gymnasium.Wrapper, RecordConstructorArgs):  # type: ignore[misc]  # Gymnasium is not followed by mypy
    """Adds to each `info` the keys of `TextEnv` that are missing.

    - `messages`: observations are the user's, actions the assistant's. An empty observation at the end adds no message.
    - `prompt`: the messages before the first response. An environment whose reward functions shall get plain strings
      says so by giving `info["prompt"]` as a string.
    - `columns`: `{}`.

    What the environment itself gives under these keys stays.
    """

    def __init__(self, env: Any) -> None:
        RecordConstructorArgs.__init__(self)
        gymnasium.Wrapper.__init__(self, env)
        self._messages: list[Message] = []
        self._prompt: Any = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Reset the environment and begin the conversation with its observation."""
        text, info = checked_reset(self.env, seed, options)
        self._messages = self._given(info, None) or [{"role": "user", "content": text}]
        self._prompt = copy.deepcopy(info.get("prompt", self._messages))
        return text, self._completed(info)

    def step(self, action: str) -> tuple[str, Any, bool, bool, dict[str, Any]]:
        """Step the environment, and add the response and the new observation to the conversation."""
        text, reward, terminated, truncated, info = checked_step(self.env, action)
        self._messages.append({"role": "assistant", "content": action})
        if text or not (terminated or truncated):
            self._messages.append({"role": "user", "content": text})
        self._messages = self._given(info, action) or self._messages
        return text, reward, terminated, truncated, self._completed(info)

    def _completed(self, info: dict[str, Any]) -> dict[str, Any]:
        messages = [dict(message) for message in self._messages]
        return {"columns": {}, **info, "messages": messages, "prompt": copy.deepcopy(self._prompt)}

    def _given(self, info: dict[str, Any], response: str | None) -> list[Message] | None:
        """Return the messages that the environment itself gives, if any; they must hold `response`."""
        if "messages" not in info:
            return None
        try:
            messages = to_messages(info["messages"])
        except ChatFormatError as error:
            raise TextEnvError(f"{self.env} returned info['messages'] that is no conversation: {error}") from error
        if response is not None and {"role": "assistant", "content": response} not in messages:
            raise TextEnvError(
                f"{self.env} returned info['messages'] without the response that it was given. "
                "Add it with the role 'assistant', or leave 'messages' out: then they are written by themselves."
            )
        return messages
