"""Intervals against the normal approximation, their coverage, and pairing."""

import numpy as np
import pytest

from rlhf.evaluation import bootstrap
from rlhf.evaluation.bootstrap import bootstrap_interval, mean_interval, pairwise_wins


def test_mean_interval_agrees_with_the_normal_one():
    values = np.random.default_rng(0).normal(2.0, 3.0, size=200)
    half = 1.959964 * values.std() / np.sqrt(200)  # the bootstrap's own spread is that of the population formula
    low, high = mean_interval(values, resamples=40_000, seed=1)
    assert low == pytest.approx(values.mean() - half, abs=0.03 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.03 * half)


def test_level_sets_the_width():
    values = np.random.default_rng(0).normal(size=200)
    half = 0.674490 * values.std() / np.sqrt(200)  # the quartiles of a normal
    low, high = mean_interval(values, resamples=40_000, seed=1, level=0.5)
    assert high - low == pytest.approx(2 * half, rel=0.03)


def test_coverage_is_near_its_level():
    rng = np.random.default_rng(2)
    trials = 400
    hits = 0
    for trial in range(trials):
        low, high = mean_interval(rng.normal(1.0, 2.0, size=60), resamples=800, seed=trial)
        hits += low <= 1.0 <= high
    # 95% plus or minus three standard errors, and the percentile method's known loss of about 1% at n = 60
    assert 0.91 <= hits / trials <= 0.98


def test_differences_are_paired_by_prompt():
    rng = np.random.default_rng(3)
    prompt = rng.normal(0, 10, size=100)  # prompts differ much more than policies do
    before, after = prompt, prompt + 0.5 + rng.normal(0, 0.1, size=100)
    columns = np.stack([before, after], axis=1)
    low, high = bootstrap_interval(columns, lambda means: means[:, 1] - means[:, 0], resamples=5000, seed=0)
    assert (low, high) == pytest.approx(mean_interval(after - before, resamples=5000, seed=0), abs=1e-9)
    assert 0.4 < low < 0.5 < high < 0.6


def test_statistic_of_a_quotient_against_a_literal_loop():
    rng = np.random.default_rng(4)
    columns = np.stack([rng.normal(3, 1, size=12), rng.uniform(1, 5, size=12)], axis=1)
    interval = bootstrap_interval(columns, lambda means: means[:, 0] / means[:, 1], resamples=300, seed=5)
    drawn = np.random.default_rng(5).integers(12, size=(300, 12))
    values = [sum(columns[i, 0] for i in row) / sum(columns[i, 1] for i in row) for row in drawn]
    assert interval == pytest.approx((np.percentile(values, 2.5), np.percentile(values, 97.5)), abs=1e-12)


def test_same_seed_same_interval_and_chunks_do_not_matter(monkeypatch):
    values = np.random.default_rng(0).normal(size=30)
    whole = mean_interval(values, resamples=1000, seed=7)
    assert mean_interval(values, resamples=1000, seed=7) == whole
    assert mean_interval(values, resamples=1000, seed=8) != whole
    monkeypatch.setattr(bootstrap, "_COUNTS_AT_ONCE", 30 * 7)
    assert mean_interval(values, resamples=1000, seed=7) == pytest.approx(whole, abs=1e-12)


def test_equal_columns_differ_by_exactly_zero():
    values = np.random.default_rng(0).normal(size=83)
    columns = np.stack([values, values**2 + 1, values, values**2 + 1], axis=1)
    interval = bootstrap_interval(
        columns, lambda m: np.exp(m[:, 2] / m[:, 3]) - np.exp(m[:, 0] / m[:, 1]), resamples=10_000, seed=0
    )
    assert interval == (0.0, 0.0)


def test_one_prompt_gives_an_interval_without_width():
    assert mean_interval(np.array([1.5]), resamples=100, seed=0) == (1.5, 1.5)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="at least one prompt"):
        mean_interval(np.zeros(0), resamples=100, seed=0)
    with pytest.raises(ValueError, match="NaN"):
        mean_interval(np.array([1.0, np.nan]), resamples=100, seed=0)


def test_wins_ties_and_missing_scores():
    before = np.array([1.0, 1.0, 1.0, np.nan, 0.0])
    after = np.array([2.0, 0.0, 1.0, 5.0, np.nan])
    np.testing.assert_array_equal(pairwise_wins(before, after), [1.0, 0.0, 0.5, np.nan, np.nan])
