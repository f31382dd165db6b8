"""Distinct-n counted by hand."""

import pytest

from rlhf.evaluation.text_metrics import distinct_n, words


def test_words_are_lower_case_without_punctuation():
    assert words("We'll see, WE \u2014 see! 2nd \u00dcber") == ["we'll", "see", "we", "see", "2nd", "\u00fcber"]


def test_pairs_are_counted_over_all_texts_and_never_across_two():
    # a b, b a, a b | a b: four pairs, two different; the pair "b a" between the texts is none
    assert distinct_n(["a b a b", "A, b."]) == pytest.approx(2 / 4)


def test_no_repetition_gives_one():
    assert distinct_n(["every word here differs", "from all others"]) == 1.0


def test_other_lengths():
    assert distinct_n(["x x x"], n=1) == pytest.approx(1 / 3)
    assert distinct_n(["a b c a b c"], n=3) == pytest.approx(3 / 4)


def test_nothing_to_count():
    assert distinct_n([]) is None
    assert distinct_n(["word", "", "..."]) is None
