"""Statistics of the text of responses, without any model: signs of repetition and of collapse onto a few phrases."""

import re
from collections.abc import Iterable

__all__ = ["distinct_n", "words"]

_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")


def words(text: str) -> list[str]:
    """Words in lower case; punctuation is left out, and an apostrophe inside a word belongs to it."""
    return [word.casefold() for word in _WORD.findall(text)]


def distinct_n(texts: Iterable[str], n: int = 2) -> float | None:
    """Share of different n-grams of words among all n-grams of all texts.

    After distinct-n of Li et al. (2016, arXiv 1510.03055, section 5), who divide by the number of words instead.
    Counted over all texts together, so that saying the same in every response counts as repetition as well. It falls
    when there is more text: compare policies on the same prompts, and look at their lengths beside it.

    Returns:
        A number in (0, 1]; None if no text has n words.
    """
    total = 0
    seen: set[tuple[str, ...]] = set()
    for text in texts:
        spoken = words(text)
        grams = [tuple(spoken[i : i + n]) for i in range(len(spoken) - n + 1)]  # within one text, never across two
        total += len(grams)
        seen.update(grams)
    return len(seen) / total if total else None
