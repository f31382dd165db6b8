"""The contract of a reward function, and the few helpers that follow from it.

It is TRL's: a function is called with keyword arguments only, once for a whole batch, and returns one number per sample
or None where it does not apply. Whatever scores responses here (rules, trained models, functions of users) has this
form; `registry` finds it by name and `combine` calls it. This module runs nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, Protocol

from reward_models.chat import Message, Text

Completion = str | list[Message]
RewardValues = Sequence[float | None]


class RewardFunction(Protocol):
    """A callable `reward(prompts, completions, **columns) -> list[float | None]`, plain or async.

    It is called with N samples at a time: `prompts` and `completions` as lists of N; each other column of the data set
    as a list of N; `completion_ids` as the N lists of token ids that the policy sampled. A function names the arguments
    that it reads and takes the rest as `**kwargs`. A completion is a string where the prompt is one, and a list with
    one message of the assistant where the prompt is a list of messages. The arguments are shared between functions: do
    not change them.
    """

    def __call__(
        self, *, prompts: list[Text], completions: list[Completion], **columns: Any
    ) -> RewardValues | Awaitable[RewardValues]:
        """Return one finite number per sample, None for a sample to which the reward does not apply."""
        ...


def as_completion(prompt: Text, response: str) -> Completion:
    """Return `response` in the form that reward functions expect beside `prompt`."""
    return response if isinstance(prompt, str) else [{"role": "assistant", "content": response}]


def completion_text(completion: Completion) -> str:
    """Return the text of a completion of either form."""
    if isinstance(completion, str):
        return completion
    return "\n".join(message["content"] for message in completion)
