"""Rows that are trained on, and rows that are held out: every row is one of the two."""

import pytest

from rlhf.data.environment_rows import split_rows


@pytest.mark.parametrize(
    ("rows", "fraction", "held"),
    [(10, 0.2, 2), (24, 0.2, 5), (100, 0.2, 20), (3, 0.2, 1), (2, 0.9, 1), (10, 0.01, 1), (10, 0.0, 0), (1, 0.5, 0)],
)
def test_every_row_is_trained_on_or_held_out(rows, fraction, held):
    training, held_out = split_rows(rows, fraction)
    assert len(held_out) == held
    assert sorted(training + held_out) == list(range(rows))
    assert split_rows(rows, fraction) == (training, held_out)


def test_held_out_rows_are_not_the_first_or_last_ones():
    assert split_rows(100, 0.2)[1] not in (list(range(20)), list(range(80, 100)))
