"""Bootstrap intervals over prompts. The one place where uncertainty is put on an evaluation's numbers.

Prompts are the units that are resampled, never single responses or tokens: responses to one prompt resemble each other,
and both policies answer the same prompts. Nothing here knows what is measured.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

__all__ = ["Interval", "Statistic", "bootstrap_interval", "mean_interval", "pairwise_wins"]

Floats = NDArray[np.float64]
Interval = tuple[float, float]
Statistic = Callable[[Floats], Floats]

_COUNTS_AT_ONCE = 2_000_000  # 16 MB


def bootstrap_interval(
    columns: Floats, statistic: Statistic, *, resamples: int, seed: int, level: float = 0.95
) -> Interval:
    """Percentile bootstrap interval (Efron and Tibshirani, 1993, section 13.3) of a function of column means.

    Each resample draws P prompts with replacement, with all columns of a prompt together: that is what makes a
    difference of two policies a paired one. The ends are the (1 - level) / 2 and (1 + level) / 2 quantiles of the
    resampled statistic.

    Args:
        columns: (P, K), one row a prompt; no NaN.
        statistic: Takes means of the columns over prompts (R, K) and returns (R,): the identity of one column for a
            mean, a quotient of two for a ratio.
        resamples: R, number of resamples.
        seed: Same seed, same P: the same resamples.
        level: Probability that the interval aims to cover.

    Returns:
        Lower and upper end; a single prompt gives an interval of width 0.

    Raises:
        ValueError: There are no prompts, or a column holds NaN.
    """
    if len(columns) == 0:
        raise ValueError("an interval needs at least one prompt")
    if np.isnan(columns).any():
        raise ValueError("columns hold NaN: leave out prompts without a value before resampling")
    values = np.concatenate(
        # counts are whole numbers, so that equal values have exactly their value as mean
        [statistic(counts @ columns / len(columns)) for counts in _draws(len(columns), resamples, seed)]
    )
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_interval(values: Floats, *, resamples: int, seed: int, level: float = 0.95) -> Interval:
    """Interval of the mean of one value per prompt (P,); see `bootstrap_interval`."""
    return bootstrap_interval(values[:, None], lambda means: means[:, 0], resamples=resamples, seed=seed, level=level)


def pairwise_wins(before: Floats, after: Floats) -> Floats:
    """1 where `after` is higher, 0 where it is lower, 1/2 for a tie; NaN where one of the two is NaN.

    The mean is the probability of superiority P(Y > X) + P(Y = X) / 2 (Vargha and Delaney, 2000, eq. 7), here of pairs.
    """
    wins = np.where(after > before, 1.0, np.where(after == before, 0.5, 0.0))
    return np.where(np.isnan(before) | np.isnan(after), np.nan, wins)


def _draws(prompts: int, resamples: int, seed: int) -> Iterator[Floats]:
    """Yield (r, P): how often each resample draws each prompt; R rows in all, each with the sum P."""
    rng = np.random.default_rng(seed)
    rows = max(1, _COUNTS_AT_ONCE // prompts)
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn = rng.integers(prompts, size=(count, prompts))
        cells = drawn + prompts * np.arange(count)[:, None]  # a cell for each resample and prompt
        yield np.bincount(cells.ravel(), minlength=count * prompts).reshape(count, prompts).astype(np.float64)
