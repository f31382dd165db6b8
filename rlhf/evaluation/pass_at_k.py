"""pass@k: the chance that at least one of k responses to a prompt is right, estimated from n >= k samples."""

from math import comb

import numpy as np
from numpy.typing import NDArray

__all__ = ["pass_at_k", "sizes_of_k"]

Floats = NDArray[np.float64]


def pass_at_k(right: Floats, samples_per_prompt: int, k: int) -> Floats:
    """Unbiased estimate of pass@k for each prompt (Chen et al., 2021, eq. 1): 1 - C(n - c, k) / C(n, k).

    Of the n samples of a prompt c are right. k = 1 gives c / n, the average over the samples (avg@n).

    Args:
        right: (N,) 1 where a response is right, 0 where it is not, NaN where nobody can say; the samples of a prompt
            one behind the other.
        samples_per_prompt: N / P.
        k: Responses of which one has to be right.

    Returns:
        (P,) NaN where fewer than k samples have a value.
    """
    grid = right.reshape(-1, samples_per_prompt)
    known = (~np.isnan(grid)).sum(1).tolist()  # (P,)
    hits = np.nansum(grid, axis=1).astype(int).tolist()  # (P,)
    return np.array([1 - comb(n - c, k) / comb(n, k) if n >= k else np.nan for n, c in zip(known, hits, strict=True)])


def sizes_of_k(samples_per_prompt: int) -> list[int]:
    """The k that are worth a line: powers of two, and all samples."""
    powers = [2**exponent for exponent in range(samples_per_prompt.bit_length())]
    return sorted({*powers, samples_per_prompt})
