"""Mixing: exact shares, every row used, and no repetition beyond what the shares need."""

from collections import Counter
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.data.mix import interleave, limit_sizes

WEIGHT = st.sampled_from([0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 7.0])
SOURCES = st.lists(st.tuples(st.integers(1, 40), WEIGHT), min_size=1, max_size=4)


def rows_of(sizes: list[int]) -> list[list[str]]:
    return [[f"{source}.{row}" for row in range(size)] for source, size in enumerate(sizes)]


def test_one_source_stays_as_it_is() -> None:
    assert interleave([list("abc")], [0.3]) == ["a", "b", "c"]


def test_sizes_in_the_proportion_of_weights_need_no_repetition() -> None:
    mixed = interleave(rows_of([9, 3]), [3, 1])
    assert mixed[:4] == ["0.0", "0.1", "1.0", "0.2"]
    assert Counter(mixed) == Counter(name for rows in rows_of([9, 3]) for name in rows)


def test_the_small_source_is_repeated_in_whole_passes() -> None:
    mixed = interleave(rows_of([5, 2]), [1, 1])
    assert mixed == ["0.0", "1.0", "0.1", "1.1", "0.2", "1.0", "0.3", "1.1", "0.4", "1.0"]


def test_decimal_weights_are_exact() -> None:
    assert Counter(name[0] for name in interleave(rows_of([30, 10]), [0.3, 0.1])) == {"0": 30, "1": 10}


@settings(deadline=None)  # a loaded machine is no failure
@given(SOURCES)
def test_shares_are_exact_and_repetition_least(sources: list[tuple[int, float]]) -> None:
    sizes, weights = [size for size, _ in sources], [weight for _, weight in sources]
    mixed = interleave(rows_of(sizes), weights)
    counts = Counter(mixed)
    used = [sum(counts[name] for name in rows) for rows in rows_of(sizes)]
    total = max(size * sum(weights) / weight for size, weight in sources)
    for source, rows in enumerate(rows_of(sizes)):
        assert used[source] == pytest.approx(total * weights[source] / sum(weights), abs=0.5 + 1e-6)
        assert min(counts[name] for name in rows) >= 1
        assert max(counts[name] for name in rows) - min(counts[name] for name in rows) <= 1
    assert any(count == size for count, size in zip(used, sizes, strict=True))  # one source is not repeated


@settings(deadline=None)  # a loaded machine is no failure
@given(SOURCES)
def test_every_stretch_has_the_shares_of_the_whole(sources: list[tuple[int, float]]) -> None:
    sizes, weights = [size for size, _ in sources], [weight for _, weight in sources]
    mixed = [name.partition(".")[0] for name in interleave(rows_of(sizes), weights)]
    for source in map(str, range(len(sizes))):
        share = mixed.count(source) / len(mixed)
        so_far = accumulate(name == source for name in mixed)
        assert all(abs(count - share * length) <= len(sizes) for length, count in enumerate(so_far, start=1))


def test_a_limit_takes_rows_in_the_shares_of_the_weights() -> None:
    assert limit_sizes([100, 100], [1, 1], None) == [100, 100]
    assert limit_sizes([100, 100], [1, 1], 200) == [100, 100]
    assert limit_sizes([100, 100], [3, 1], 40) == [30, 10]
    assert limit_sizes([100, 100, 100], [1, 1, 1], 10) == [4, 3, 3]
    assert limit_sizes([1000, 10], [1, 1], 100) == [50, 10]  # 10 rows fill their 50 places by repetition
    assert limit_sizes([7], [0.5], 3) == [3]


@settings(deadline=None)  # a loaded machine is no failure
@given(SOURCES, st.integers(1, 100))
def test_a_limit_is_kept(sources: list[tuple[int, float]], max_rows: int) -> None:
    sizes, weights = [size for size, _ in sources], [weight for _, weight in sources]
    limited = limit_sizes(sizes, weights, max_rows)
    assert sum(limited) <= max_rows
    assert all(0 <= few <= size for few, size in zip(limited, sizes, strict=True))
