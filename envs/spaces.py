"""The space of Unicode text: observations and actions of this package's environments are elements of it.

Gymnasium's own `Text` admits only characters of a finite set and compares spaces by that set. What people and language
models write cannot be listed that way. It says nothing about the length in tokens, which depends on a tokenizer.
Gymnasium's shared memory is refused at the end.
"""

from __future__ import annotations

import re
import string
from typing import Any

import numpy as np
from gymnasium.error import CustomSpaceError
from gymnasium.spaces import Text
from gymnasium.vector.utils import create_shared_memory

MAX_TEXT_LENGTH = 1_000_000  # characters; far more than a model's context, so that it never cuts anything by chance

# Samples mix one-, two-, three- and four-byte characters, a line break and a combining accent, so that random actions
# exercise whatever handles text. They are short, because a sample of a million characters serves nobody.
SAMPLE_ALPHABET = string.ascii_letters + string.digits + " .,?!'{}<|>\n\u00e9\u00df\u0301\u0416\u4f60\u2603\U0001f600"
SAMPLE_LENGTH = 64  # characters, at most

_SURROGATE = re.compile("[\ud800-\udfff]")


class UnicodeText(Text):  # type: ignore[misc]  # Gymnasium is not followed by mypy
    """Every Unicode string of `min_length` to `max_length` characters (code points), both inclusive.

    A lone surrogate is no Unicode character and cannot be encoded: strings that hold one are outside the space.

    Args:
        max_length: Most characters.
        min_length: Fewest characters; 0 admits the empty string.
        seed: Seed of `sample`.

    Raises:
        ValueError: A length is negative, or `min_length` exceeds `max_length`.
    """

    def __init__(
        self,
        max_length: int = MAX_TEXT_LENGTH,
        *,
        min_length: int = 0,
        seed: int | np.random.Generator | None = None,
    ) -> None:
        super().__init__(max_length, min_length=min_length, charset=SAMPLE_ALPHABET, seed=seed)

    def contains(self, x: Any) -> bool:
        """Return whether `x` is a string of allowed length without lone surrogates."""
        return isinstance(x, str) and self.min_length <= len(x) <= self.max_length and _SURROGATE.search(x) is None

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Return a random string over `SAMPLE_ALPHABET`, at most `SAMPLE_LENGTH` characters beyond `min_length`.

        Args:
            mask: As in Gymnasium's `Text`: a length or None, and which characters of the alphabet to draw from.
            probability: As in Gymnasium's `Text`: a length or None, and the probability of each character.
        """
        if mask is None and probability is None:
            longest = min(self.max_length, self.min_length + SAMPLE_LENGTH)
            mask = (int(self.np_random.integers(self.min_length, longest + 1)), None)
        return str(super().sample(mask=mask, probability=probability))

    @property
    def is_np_flattenable(self) -> bool:
        """False: an open character set has no fixed numbering."""
        return False

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, UnicodeText)
            and self.min_length == other.min_length
            and self.max_length == other.max_length
        )

    def __repr__(self) -> str:
        return f"UnicodeText({self.max_length}, min_length={self.min_length})"


@create_shared_memory.register(UnicodeText)  # type: ignore[untyped-decorator]
def _refuse(space: UnicodeText, n: int = 1, ctx: Any = None) -> Any:
    """Refuse shared memory: `AsyncVectorEnv` reads texts from it once, when nothing is said yet, and never again."""
    raise CustomSpaceError(
        "Text cannot lie in shared memory. Give make_vec vector_kwargs={'shared_memory': False}, or use "
        "envs.TextVectorEnv with workers."
    )
