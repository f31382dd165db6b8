"""Built-in rules against values counted by hand."""

from __future__ import annotations

import pytest

from reward_models.errors import RewardError
from reward_models.registry import load_function, registered

MESSAGE = [{"role": "assistant", "content": "one two three"}]


@pytest.mark.parametrize(
    ("name", "args", "completion", "expected"),
    [
        ("length", {"minimum_words": 2, "maximum_words": 4}, "one two", 0.0),
        ("length", {"minimum_words": 2, "maximum_words": 4}, MESSAGE, 0.0),
        ("length", {"minimum_words": 2, "maximum_words": 4}, "one", -0.25),
        ("length", {"minimum_words": 2, "maximum_words": 4}, "", -0.5),
        ("length", {"minimum_words": 2, "maximum_words": 4}, "a b c d e f g", -0.75),
        ("length", {"minimum_words": 2, "maximum_words": 4}, "a " * 100, -1.0),
        ("keyword", {"keywords": ["refund", "order"]}, "Your Refund, sir.", 0.5),
        ("keyword", {"keywords": ["refund"]}, "refunded", 0.0),
        ("keyword", {"keywords": ["c++"]}, "I like C++.", 1.0),
        ("keyword", {"keywords": ["two", "three"]}, MESSAGE, 1.0),
        ("regex", {"pattern": r"order #\d+"}, "see order #17", 1.0),
        ("regex", {"pattern": r"order #\d+"}, "see order 17", 0.0),
        ("regex", {"pattern": "^one.*three$"}, "one\ntwo\nthree", 1.0),
        ("regex", {"pattern": "two"}, MESSAGE, 1.0),
        ("repetition", {"ngram_words": 1}, "no no No yes", -0.5),
        ("repetition", {"ngram_words": 2}, "a b a b a", -0.5),
        ("repetition", {"ngram_words": 3}, MESSAGE, 0.0),
        ("repetition", {}, "too short", 0.0),
    ],
)
def test_values(name, args, completion, expected) -> None:
    values = load_function(name, args)(prompts=["p"], completions=[completion], completion_ids=[[1]], topic=["t"])
    assert values == pytest.approx([expected], abs=1e-12)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("length", {"minimum_words": 5, "maximum_words": 4}, "minimum_words 5 and maximum_words 4"),
        ("length", {"minimum_words": 0, "maximum_words": 0}, "maximum_words > 0"),
        ("length", {"minimum_words": 1}, "maximum_words"),
        ("keyword", {"keywords": []}, r"keywords is \[\]"),
        ("keyword", {"keywords": "refund"}, "must be a list"),
        ("regex", {"pattern": "("}, "not a regular expression"),
        ("repetition", {"ngram_words": 0}, "at least 1"),
        ("length", {"minimum_wrods": 1, "maximum_words": 4}, "did you mean minimum_words"),
    ],
)
def test_arguments_are_checked_before_anything_is_scored(name, args, message) -> None:
    with pytest.raises(RewardError, match=message):
        load_function(name, args)


def test_every_rule_says_what_it_does() -> None:
    assert set(registered()) == {"length", "keyword", "regex", "repetition"}
    assert all(rule.__doc__ for rule in registered().values())
