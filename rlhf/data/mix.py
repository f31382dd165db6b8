"""Mixing sources by weight.

With weights w_i the training rows of source i are the share p_i = w_i / sum(w) of the mix, exact to the nearest row.
Every row is used. The source that is largest for its share (the largest n_i / p_i) stands in the mix once; the others
are repeated as often as their share needs, whole passes before any row comes once more. Nothing else is repeated, and
held-out rows never are. Two sources of 900 and 100 rows with weights 9 and 1 are just put together; with weights 1 and
1 each row of the second stands in the mix nine times. The mix is evenly interleaved: every stretch of it has the shares
of the whole.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import TypeVar

T = TypeVar("T")


def limit_sizes(sizes: Sequence[int], weights: Sequence[float], max_rows: int | None) -> list[int]:
    """How many rows of each source are used when there may be `max_rows` different ones, repetitions not counted.

    Args:
        sizes: Rows of each source, n_i.
        weights: Weight of each source, w_i > 0.
        max_rows: Most rows over all sources; None: all.

    Returns:
        For each source at most n_i; together at most `max_rows`, in the shares of the weights where n_i allows it.
    """
    if max_rows is None or sum(sizes) <= max_rows:
        return list(sizes)
    shares = _shares(weights)
    exact = [share * max_rows for share in shares]
    counts = [int(count) for count in exact]
    # the rows that rounding left over go to the largest remainders
    order = sorted(range(len(sizes)), key=lambda i: (counts[i] - exact[i], i))
    for i in order[: max_rows - sum(counts)]:
        counts[i] += 1
    return [min(count, size) for count, size in zip(counts, sizes, strict=True)]


def interleave(sources: Sequence[Sequence[T]], weights: Sequence[float]) -> list[T]:
    """Mix rows of several sources; see the module's docstring.

    Args:
        sources: Rows of each source; none may be empty.
        weights: Weight of each source, w_i > 0.
    """
    assert all(sources), "an empty source has no share to give"
    shares = _shares(weights)
    total = max(len(rows) / share for rows, share in zip(sources, shares, strict=True))  # N = max n_i / p_i
    counts = [round(total * share) for share in shares]
    # The j-th of c_i rows of a source stands in the middle of the j-th of c_i equal parts of the mix.
    slots = [((2 * j + 1) / (2 * count), i, j) for i, count in enumerate(counts) for j in range(count)]
    return [sources[i][j % len(sources[i])] for _, i, j in sorted(slots)]


def _shares(weights: Sequence[float]) -> list[Fraction]:
    # by way of the decimal text: 0.1 means a tenth, not the nearest binary fraction
    exact = [Fraction(str(weight)) for weight in weights]
    return [weight / sum(exact) for weight in exact]
