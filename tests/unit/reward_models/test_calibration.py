"""Pair metrics against published values, a literal loop and data whose calibration is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from reward_models.calibration import expected_calibration_error, pair_metrics, wilson_interval
from reward_models.errors import RewardError


def test_metrics_by_hand() -> None:
    metrics = pair_metrics([1.0, 2.0, 0.0, 5.0], [0.0, 4.0, 0.0, 1.0])  # margins 1, -2, 0, 4
    assert metrics.pairs == 4
    assert metrics.accuracy == 0.5  # the tie is not a win
    assert metrics.mean_margin == 0.75
    assert (metrics.accuracy_low, metrics.accuracy_high) == wilson_interval(2, 4)


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Roots of (p - s)^2 = z^2 p (1 - p) / n, solved independently of the closed form.
        (15, 20, 0.531299, 0.888138),
        (50, 100, 0.403832, 0.596168),
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
    ],
)
def test_wilson_interval(successes, trials, low, high) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=1e-5)


@pytest.mark.parametrize(("successes", "trials"), [(1, 3), (37, 50), (399, 400)])
def test_ends_of_the_wilson_interval_are_where_the_score_test_turns(successes, trials) -> None:
    share = successes / trials
    for p in wilson_interval(successes, trials):
        assert abs(share - p) / math.sqrt(p * (1 - p) / trials) == pytest.approx(1.959963984540054, abs=1e-9)


def slow_error(margins, bins) -> float:
    """The definition, pair by pair: bins over the confidence of the preferred response."""
    total = 0.0
    for b in range(bins):
        low, high = 0.5 + 0.5 * b / bins, 0.5 + 0.5 * (b + 1) / bins
        inside = []
        for margin in margins:
            p = 1 / (1 + math.exp(-margin))
            confidence = max(p, 1 - p)
            if low <= confidence < high or (b == bins - 1 and confidence == 1.0):
                inside.append((confidence, 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0))
        if inside:
            gap = sum(right for _, right in inside) / len(inside) - sum(c for c, _ in inside) / len(inside)
            total += len(inside) / len(margins) * abs(gap)
    return total


@pytest.mark.parametrize("bins", [1, 5, 10])
def test_calibration_error_is_its_definition(bins) -> None:
    margins = np.append(np.random.default_rng(1).normal(0.5, 2.0, size=300), 0.0)
    assert expected_calibration_error(margins, bins) == pytest.approx(slow_error(margins, bins), abs=1e-12)


def test_calibration_error_by_hand() -> None:
    # Three right and one wrong at confidence 3/4 are perfect; all four right are wrong by 1/4.
    margin = math.log(3)
    assert expected_calibration_error(np.array([margin] * 3 + [-margin])) == pytest.approx(0, abs=1e-12)
    assert expected_calibration_error(np.array([margin] * 4)) == pytest.approx(0.25, abs=1e-12)
    assert expected_calibration_error(np.zeros(5)) == pytest.approx(0, abs=1e-12)
    assert expected_calibration_error(np.array([1000.0, -1000.0])) == pytest.approx(0.5, abs=1e-12)


def test_model_that_knows_its_probabilities_is_calibrated_and_one_that_exaggerates_is_not() -> None:
    rng = np.random.default_rng(2)
    margins = rng.normal(0, 2, size=20_000)
    signs = np.where(rng.random(20_000) < 1 / (1 + np.exp(-margins)), 1, -1)
    margins = margins * signs  # the first of two responses is chosen with the probability that the model gives it
    assert expected_calibration_error(margins) < 0.02
    assert expected_calibration_error(3 * margins) > 0.08


@pytest.mark.parametrize(
    ("chosen", "rejected", "message"),
    [
        ([], [], "at least 1"),
        ([1.0], [1.0, 2.0], r"got \(1,\), \(2,\)"),
        ([1.0, math.nan], [0.0, 0.0], "Pair 1 has the scores nan and 0.0"),
    ],
)
def test_pairs_that_cannot_be_measured(chosen, rejected, message) -> None:
    with pytest.raises(RewardError, match=message):
        pair_metrics(chosen, rejected)
