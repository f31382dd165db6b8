"""Two sets of values, one for each policy, on the same prompts: their means, their difference, its interval.

The rule behind every entry: both numbers are taken over the prompts on which both policies have a value, so that the
difference is that of the two numbers beside it, and the interval is that of the difference.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from rlhf.evaluation.bootstrap import bootstrap_interval, mean_interval, pairwise_wins

__all__ = ["Design", "Entry", "Share", "means_of", "prompt_means", "quotients_of", "wins_of"]

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class Design:
    """How N = P * S values are grouped, the samples of a prompt one behind the other, and how intervals are made.

    Attributes:
        samples_per_prompt: S.
        resamples: Bootstrap resamples of prompts.
        seed: Of the resampling.
    """

    samples_per_prompt: int
    resamples: int
    seed: int


class Entry(TypedDict):
    """A metric of both policies; None where nothing could be computed."""

    before: float | None
    after: float | None
    difference: float | None  # after - before
    interval: list[float] | None  # 95%, of the difference


class Share(TypedDict):
    """A share with its 95% interval; None where nothing could be computed."""

    value: float | None
    interval: list[float] | None


def means_of(before: Floats, after: Floats, design: Design) -> Entry:
    """Mean over prompts of the mean over a prompt's samples; samples without a value (NaN) are left out.

    Args:
        before: (N,) values of the policy before.
        after: (N,) values of the policy after.
        design: How they are grouped.
    """
    means = [prompt_means(values, design.samples_per_prompt) for values in (before, after)]
    return _entry(np.stack([means[0], np.ones_like(means[0]), means[1], np.ones_like(means[1])], axis=1), design)


def quotients_of(
    before: tuple[Floats, Floats],
    after: tuple[Floats, Floats],
    design: Design,
    transform: Callable[[Floats], Floats] | None = None,
) -> Entry:
    """Sum of one quantity over all responses, divided by the sum of another.

    Args:
        before: Numerators and denominators (N,) of the policy before; a NaN leaves its prompt out.
        after: Those of the policy after.
        design: How they are grouped.
        transform: Applied to the quotients.
    """
    sums = [values.reshape(-1, design.samples_per_prompt).sum(1) for values in (*before, *after)]
    return _entry(np.stack(sums, axis=1), design, transform)


def wins_of(before: Floats, after: Floats, design: Design) -> Share:
    """Share of pairs of responses, both (N,), in which the policy after has the higher value; a tie counts half."""
    wins = prompt_means(pairwise_wins(before, after), design.samples_per_prompt)
    wins = wins[~np.isnan(wins)]
    if not len(wins):
        return {"value": None, "interval": None}
    interval = mean_interval(wins, resamples=design.resamples, seed=design.seed)
    return {"value": float(wins.mean()), "interval": list(interval)}


def prompt_means(values: Floats, samples_per_prompt: int) -> Floats:
    """Mean over the samples of each prompt that have a value: (N,) -> (P,); NaN for a prompt without any."""
    grid = values.reshape(-1, samples_per_prompt)
    has_value = ~np.isnan(grid)
    counts = has_value.sum(1)
    sums = np.where(has_value, grid, 0.0).sum(1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _entry(columns: Floats, design: Design, transform: Callable[[Floats], Floats] | None = None) -> Entry:
    """From numerator and denominator of the policy before, then of the one after, (P, 4), to the entry."""
    columns = columns[~np.isnan(columns).any(1)]
    if not len(columns):
        return {"before": None, "after": None, "difference": None, "interval": None}

    def both(means: Floats) -> tuple[Floats, Floats]:
        first, second = means[:, 0] / means[:, 1], means[:, 2] / means[:, 3]
        return (first, second) if transform is None else (transform(first), transform(second))

    def difference(means: Floats) -> Floats:
        first, second = both(means)
        return second - first

    before, after = (float(value[0]) for value in both(columns.mean(0, keepdims=True)))
    interval = bootstrap_interval(columns, difference, resamples=design.resamples, seed=design.seed)
    return {"before": before, "after": after, "difference": after - before, "interval": list(interval)}
