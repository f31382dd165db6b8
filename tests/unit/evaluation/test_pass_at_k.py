"""pass@k against its definition: draw k of the n samples without replacement, and look whether one is right."""

from itertools import combinations, product
from math import nan

import numpy as np
import pytest

from rlhf.evaluation.pass_at_k import pass_at_k, sizes_of_k


def by_definition(row, k):
    draws = list(combinations(row, k))
    return sum(any(draw) for draw in draws) / len(draws)


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_it_is_the_share_of_draws_with_a_right_response(k):
    rows = list(product([0.0, 1.0], repeat=4))
    expected = [by_definition(row, k) for row in rows]
    assert pass_at_k(np.array(rows).ravel(), 4, k) == pytest.approx(expected, abs=1e-12)


def test_one_right_of_four_by_hand():
    right = np.array([0.0, 1.0, 0.0, 0.0])
    assert [pass_at_k(right, 4, k)[0] for k in (1, 2, 4)] == pytest.approx([1 / 4, 1 / 2, 1.0])


def test_samples_without_a_value_are_not_drawn():
    right = np.array([1.0, nan, 0.0, nan])
    assert pass_at_k(right, 4, 1)[0] == pytest.approx(0.5)
    assert pass_at_k(right, 4, 2)[0] == 1.0
    assert np.isnan(pass_at_k(right, 4, 3)[0])


@pytest.mark.parametrize(
    ("samples", "expected"), [(1, [1]), (2, [1, 2]), (4, [1, 2, 4]), (5, [1, 2, 4, 5]), (16, [1, 2, 4, 8, 16])]
)
def test_which_k_are_shown(samples, expected):
    assert sizes_of_k(samples) == expected
