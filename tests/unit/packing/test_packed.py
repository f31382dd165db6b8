"""Packing keeps each beginning of a row once, and says where each token stands; padding undoes it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.packing.packed import PackedRows

APART = st.lists(st.integers(1, 40), min_size=1, max_size=6).map(
    lambda lengths: [[1000 * number + at for at in range(length)] for number, length in enumerate(lengths)]
)
# Two words and many rows: hardly any row begins like no other, some are the beginning of another, some are equal.
ALIKE = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=20), min_size=1, max_size=12)
ROWS = APART | ALIKE


def beginnings(rows: list[list[int]]) -> list[tuple[int, ...]]:
    """All beginnings of all rows."""
    return [tuple(row[: at + 1]) for row in rows for at in range(len(row))]


@given(APART)
def test_rows_that_begin_differently_lie_end_to_end(rows: list[list[int]]) -> None:
    packed = PackedRows.from_rows(rows)
    assert packed.input_ids.tolist() == [token for row in rows for token in row]
    assert packed.positions.tolist() == [at for row in rows for at in range(len(row))]
    assert not len(packed.repeats)


@given(ROWS)
def test_each_beginning_is_kept_once(rows: list[list[int]]) -> None:
    packed = PackedRows.from_rows(rows)
    assert len(packed.input_ids) == len(set(beginnings(rows)))
    assert packed.lengths.tolist() == [len(row) for row in rows]
    of_token = {}
    for row, tokens in zip(rows, packed.grid.tolist(), strict=True):
        for at in range(len(row)):
            assert of_token.setdefault(tokens[at], tuple(row[: at + 1])) == tuple(row[: at + 1])
    assert packed.positions.tolist() == [len(of_token[token]) - 1 for token in range(len(of_token))]
    assert [of_token[token] for token in packed.last.tolist()] == [tuple(row) for row in rows]


@given(ROWS)
def test_padding_and_packing_undo_each_other(rows: list[list[int]]) -> None:
    packed = PackedRows.from_rows(rows)
    again = packed.pad(packed.input_ids)
    assert again.shape == (len(rows), max(map(len, rows)))
    # The padding holds tokens of its own row.
    assert again.tolist() == [row + [row[-1]] * (again.shape[1] - len(row)) for row in rows]
    assert torch.equal(packed.pack(again), packed.input_ids)


@given(ROWS)
def test_every_place_is_the_first_of_its_token_a_repeat_or_padding(rows: list[list[int]]) -> None:
    packed = PackedRows.from_rows(rows)
    assert packed.width == max(map(len, rows))
    real = {number * packed.width + at for number, row in enumerate(rows) for at in range(len(row))}
    firsts, repeats = packed.first.nonzero().squeeze(1).tolist(), packed.repeats.tolist()
    assert sorted(packed.slots.tolist()) == firsts
    assert sorted(firsts + repeats) == sorted(real)
    of_place = packed.sources.tolist()
    assert packed.repeated.tolist() == [of_place[place] for place in repeats]
    assert all(min(real & {p for p, t in enumerate(of_place) if t == of_place[place]}) == place for place in firsts)


def test_padding_that_is_there_already_is_dropped() -> None:
    rows = PackedRows.from_padded(torch.tensor([[7, 8, 9, -1], [5, -1, -1, -1]]), torch.tensor([3, 1]))
    assert rows.input_ids.tolist() == [7, 8, 9, 5]
    assert rows.pad(rows.input_ids).tolist() == [[7, 8, 9], [5, 5, 5]]


@pytest.mark.parametrize("samples", [1, 4])
def test_samples_of_a_prompt_share_it(samples: int) -> None:
    rows = [[*range(100 * prompt, 100 * prompt + 30), 7000 + sample] for prompt in (1, 2) for sample in range(samples)]
    assert len(PackedRows.from_rows(rows).input_ids) == 2 * (30 + samples)
