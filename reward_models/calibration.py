"""How well a reward model orders held-out pairs of responses, and how well its margins say how sure it may be.

Called after training with the raw scores of the chosen and the rejected responses. A margin is `score(chosen) -
score(rejected)`, before normalisation: only then is its sigmoid the Bradley-Terry probability that the chosen one wins.
Everything here is plain NumPy on (N,) arrays; nothing is plotted or written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from reward_models.errors import RewardError

Array = npt.NDArray[np.float64]

_Z_95 = 1.959963984540054  # the 97.5% quantile of the standard normal distribution


@dataclass(frozen=True)
class PairMetrics:
    """Quality of a reward model on `pairs` held-out pairs.

    Attributes:
        pairs: Number of pairs.
        accuracy: Share of pairs whose chosen response scores strictly higher.
        accuracy_low: Lower end of its 95% Wilson interval.
        accuracy_high: Upper end.
        mean_margin: Mean of score(chosen) - score(rejected), in units of the raw score.
        calibration_error: Expected calibration error of sigmoid(margin), in [0, 1]; 0 is perfect.
    """

    pairs: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    mean_margin: float
    calibration_error: float


def pair_metrics(chosen: Sequence[float] | Array, rejected: Sequence[float] | Array) -> PairMetrics:
    """Return all metrics from the raw scores of N chosen and N rejected responses, both (N,).

    Raises:
        RewardError: There is no pair, the lengths differ, or a score is not finite.
    """
    chosen, rejected = np.asarray(chosen, dtype=np.float64), np.asarray(rejected, dtype=np.float64)
    if chosen.shape != rejected.shape or chosen.ndim != 1 or not len(chosen):
        raise RewardError(
            f"Pairs need as many chosen as rejected scores, at least 1; got {chosen.shape}, {rejected.shape}."
        )
    margins = chosen - rejected  # (N,)
    if not np.isfinite(margins).all():
        first = int((~np.isfinite(margins)).argmax())
        raise RewardError(f"Pair {first} has the scores {chosen[first]} and {rejected[first]}; both must be finite.")
    wins = int((margins > 0).sum())  # a tie is no win: a model that knows nothing must not look right
    low, high = wilson_interval(wins, len(margins))
    return PairMetrics(
        pairs=len(margins),
        accuracy=wins / len(margins),
        accuracy_low=low,
        accuracy_high=high,
        mean_margin=float(margins.mean()),
        calibration_error=expected_calibration_error(margins),
    )


def wilson_interval(successes: int, trials: int, z: float = _Z_95) -> tuple[float, float]:
    """Return the score interval of a binomial share, 95% by default.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927). With the
    share p of n trials: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n).
    """
    share = successes / trials
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def expected_calibration_error(margins: Array, bins: int = 10) -> float:
    """Return the expected calibration error of sigmoid(margin) as the probability that the chosen response wins.

    The confidence of a pair is that of the response which the model prefers, sigmoid(|margin|), in [1/2, 1]; that range
    is cut into `bins` of equal width. ECE = sum over bins of n_bin / N * |share of right preferences - mean confidence|
    with a tie half right, as its confidence of 1/2 says.

    Source: C. Guo et al., On calibration of modern neural networks, ICML 2017, equations 2 and 3.

    Args:
        margins: (N,) score(chosen) - score(rejected) of raw scores, N at least 1.
        bins: Number of bins.
    """
    confidence = 1.0 / (1.0 + np.exp(-np.abs(margins)))  # (N,), the exponent is never positive: no overflow
    right = np.where(margins == 0, 0.5, margins > 0)  # (N,)
    index = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)  # (N,), confidence 1 is in the last bin
    gaps = np.bincount(index, weights=right - confidence, minlength=bins)  # (bins,), n_bin * (share - mean confidence)
    return float(np.abs(gaps).sum() / len(margins))
