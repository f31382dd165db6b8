"""Limits of an episode, in tokens and turns, and prompts that do not keep within them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.errors import DataError


@dataclass(frozen=True)
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
