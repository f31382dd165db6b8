"""Built-in reward rules: small checks of a response's text that need no model.

Each is a factory: its arguments come from the config and are checked before a run starts; what it returns is the reward
function. They measure words of the text, not tokens, so that they mean the same for every tokenizer.
"""

from __future__ import annotations

import re
from typing import Any

from reward_models.errors import RewardError
from reward_models.protocol import Completion, RewardFunction, completion_text
from reward_models.registry import register


@register("length")
def length(minimum_words: int, maximum_words: int) -> RewardFunction:
    """0 inside a band of lengths; outside, minus the distance to it as a share of `maximum_words`, at least -1."""
    if not 0 <= minimum_words <= maximum_words or maximum_words == 0:
        raise RewardError(
            f"Reward 'length': minimum_words {minimum_words} and maximum_words {maximum_words} must satisfy "
            "0 <= minimum_words <= maximum_words and maximum_words > 0."
        )

    def length_reward(completions: list[Completion], **_: Any) -> list[float | None]:
        counts = [len(completion_text(completion).split()) for completion in completions]
        outside = [max(minimum_words - count, count - maximum_words, 0) for count in counts]
        return [-min(distance / maximum_words, 1.0) for distance in outside]

    return length_reward


@register("keyword")
def keyword(keywords: list[str]) -> RewardFunction:
    """The share of `keywords` that occur in the response as whole words, whatever their case."""
    if not isinstance(keywords, list) or not keywords or not all(isinstance(w, str) and w for w in keywords):
        raise RewardError(f"Reward 'keyword': keywords is {keywords!r}; it must be a list of at least one word.")
    patterns = [re.compile(rf"(?<!\w){re.escape(word)}(?!\w)", re.IGNORECASE) for word in keywords]

    def keyword_reward(completions: list[Completion], **_: Any) -> list[float | None]:
        texts = [completion_text(completion) for completion in completions]
        return [sum(bool(p.search(text)) for p in patterns) / len(patterns) for text in texts]

    return keyword_reward


@register("regex")
def regex(pattern: str) -> RewardFunction:
    """1 if `pattern` (Python syntax, `.` matches line breaks) is found in the response, else 0."""
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except (re.error, TypeError) as error:
        raise RewardError(f"Reward 'regex': pattern {pattern!r} is not a regular expression: {error}.") from error

    def regex_reward(completions: list[Completion], **_: Any) -> list[float | None]:
        return [float(bool(compiled.search(completion_text(completion)))) for completion in completions]

    return regex_reward


@register("repetition")
def repetition(ngram_words: int = 3) -> RewardFunction:
    """Minus the share of the response's word n-grams that occurred before: 0 without repetition, towards -1 with."""
    if not isinstance(ngram_words, int) or ngram_words < 1:
        raise RewardError(
            f"Reward 'repetition': ngram_words is {ngram_words!r}; it must be a whole number of at least 1."
        )

    def repetition_reward(completions: list[Completion], **_: Any) -> list[float | None]:
        return [
            -_repeated_share(completion_text(completion).lower().split(), ngram_words) for completion in completions
        ]

    return repetition_reward


def _repeated_share(words: list[str], size: int) -> float:
    ngrams = [tuple(words[i : i + size]) for i in range(len(words) - size + 1)]
    return 1.0 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
