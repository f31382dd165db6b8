"""The token-by-token view of a text environment: one action is one token.

It lets any Gymnasium agent with discrete actions learn from the environments that the PPO trainer steps by whole
responses. Token ids are kept as they were chosen: what the policy wrote is decoded for the environment, never encoded
again. It scores nothing; rewards are the environment's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from envs.conversation import with_conversation
from envs.errors import TextEnvError
from envs.registry import check_text_spaces
from reward_models.chat import Message, encode_prompt, turn_suffix_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Observation = npt.NDArray[np.int64]


class TokenLevel(gymnasium.Env):  # type: ignore[misc]  # Gymnasium is not followed by mypy
    """A text environment whose action is the next token, `gymnasium.Env[NDArray[int64], int]`.

    The observation has the shape (max_context_tokens,): the ids of the conversation so far, the newest last, filled up
    with the pad id on the left. EOS ends the response, and so does a limit: `max_response_tokens`, or a full context.
    Then the text environment is stepped with the decoded response, without EOS, and its reward lands on that token;
    every other token earns 0. If after that the conversation leaves no room for another token, the episode is truncated
    and the observation shows its last part.

    Every `info` has `text` (the current response so far, or the one that was handed over just now), `stop_reason` (None
    within a response, `"eos"` or `"length"` when it ended) and `context_full`. At the start and after each response it
    also has all that the text environment's info has.

    Args:
        env: An environment with text spaces.
        tokenizer: A tokenizer that went through `reward_models.chat.prepare_tokenizer`.
        max_response_tokens: Longest response, EOS included.
        max_context_tokens: Longest conversation, prompt and responses and all between them.

    Raises:
        TextEnvError: A space is not text, a limit is not positive, or the tokenizer lacks EOS or a distinct pad token.
    """

    def __init__(
        self, env: Any, tokenizer: PreTrainedTokenizerBase, max_response_tokens: int, max_context_tokens: int
    ) -> None:
        check_text_spaces(env, str(env))
        for name, value in (("max_response_tokens", max_response_tokens), ("max_context_tokens", max_context_tokens)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise TextEnvError(f"{name} is {value!r}; it must be an integer of at least 1.")
        if tokenizer.eos_token_id is None or tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
            raise TextEnvError(
                f"The tokenizer's EOS is {tokenizer.eos_token!r} and its pad token {tokenizer.pad_token!r}; both are "
                "needed and must differ. Pass it through reward_models.chat.prepare_tokenizer first."
            )
        self.env = with_conversation(env)
        self.tokenizer = tokenizer
        self.max_response_tokens = max_response_tokens
        self.max_context_tokens = max_context_tokens
        self.action_space = spaces.Discrete(len(tokenizer))
        self.observation_space = spaces.Box(0, len(tokenizer) - 1, shape=(max_context_tokens,), dtype=np.int64)
        self._context: list[int] = []
        self._response: list[int] = []
        self._over = True

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; `seed` and `options` go to the text environment.

        Raises:
            TextEnvError: The prompt fills the context.
        """
        super().reset(seed=seed)
        _, info = self.env.reset(seed=seed, options=options)
        self._context = encode_prompt(self.tokenizer, info["prompt"])
        if len(self._context) >= self.max_context_tokens:
            raise TextEnvError(
                f"The prompt has {len(self._context)} tokens, which leaves no room for a response within "
                f"max_context_tokens {self.max_context_tokens}; raise it, or shorten the prompt "
                f"{str(info['prompt'])[:80]!r}."
            )
        self._response = []
        self._over = False
        return self._observation(), {**info, **self._progress(None)}

    def step(self, action: int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Add one token to the response; if that ends it, step the text environment.

        Raises:
            TextEnvError: `action` is no token id, or no episode is going on.
        """
        if self._over:
            raise TextEnvError("No episode is going on; call reset before step.")
        if action not in self.action_space:
            raise TextEnvError(f"The action is {action!r}; it must be a token id from 0 to {len(self.tokenizer) - 1}.")
        self._context.append(int(action))
        self._response.append(int(action))
        stop_reason = self._stop_reason()
        if stop_reason is None:
            return self._observation(), 0.0, False, False, self._progress(None)
        progress = self._progress(stop_reason)
        _, reward, terminated, truncated, info = self.env.step(progress["text"])
        self._response = []
        if not (terminated or truncated):
            self._context += turn_suffix_ids(self.tokenizer, _new(info["messages"]), stopped=stop_reason == "eos")
            truncated = progress["context_full"] = len(self._context) >= self.max_context_tokens
        self._over = bool(terminated or truncated)
        return self._observation(), float(reward), bool(terminated), bool(truncated), {**info, **progress}

    def close(self) -> None:
        """Close the text environment."""
        self.env.close()

    def _stop_reason(self) -> str | None:
        if self._response[-1] == self.tokenizer.eos_token_id:
            return "eos"
        full = len(self._response) >= self.max_response_tokens or len(self._context) >= self.max_context_tokens
        return "length" if full else None

    def _progress(self, stop_reason: str | None) -> dict[str, Any]:
        text = str(self.tokenizer.decode(self._response, skip_special_tokens=True))
        return {"text": text, "stop_reason": stop_reason, "context_full": False}

    def _observation(self) -> Observation:
        shown = self._context[-self.max_context_tokens :]
        observation = np.full(self.max_context_tokens, self.tokenizer.pad_token_id, dtype=np.int64)
        observation[self.max_context_tokens - len(shown) :] = shown
        return observation


def _new(messages: list[Message]) -> list[Message]:
    """Return the messages after the assistant's last one."""
    spoken = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    return messages[spoken[-1] + 1 :]
