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
    longest = max(map(len, rows))
    assert packed.width == longest if longest <= 16 else 0 <= packed.width - longest < 16 and packed.width % 16 == 0
    real = {number * packed.width + at for number, row in enumerate(rows) for at in range(len(row))}
    firsts, repeats = packed.first.nonzero().squeeze(1).tolist(), packed.repeats.tolist()
    assert sorted(packed.slots.tolist()) == firsts
    assert sorted(firsts + repeats) == sorted(real)
    of_place = packed.sources.tolist()
    assert packed.repeated.tolist() == [of_place[place] for place in repeats]
    assert all(min(real & {p for p, t in enumerate(of_place) if t == of_place[place]}) == place for place in firsts)


@given(ROWS, st.integers(1, 3))
def test_heads_stand_where_their_tokens_do(rows: list[list[int]], heads: int) -> None:
    packed = PackedRows.from_rows(rows)
    tokens = torch.arange(len(packed.input_ids))
    x = torch.stack([torch.stack([tokens, torch.full_like(tokens, head)], -1) for head in range(heads)], 1)  # d = 2
    padded = packed.split_heads(x)
    assert padded.shape == (len(rows), heads, packed.width, 2)
    for head in range(heads):
        assert torch.equal(padded[:, head, :, 0].flatten(), packed.sources)
        assert (padded[:, head, :, 1] == head).all()
    places = torch.arange(padded.numel()).view_as(padded)  # tells apart the places of one token
    in_order = places.transpose(1, 2).flatten(0, 1)
    assert torch.equal(packed.merge_heads(places), in_order[packed.slots])
    assert torch.equal(packed.repeated_heads(places), in_order[packed.repeats])
    assert torch.equal(packed.merge_heads(padded), x)


def test_sums_over_many_samples_are_rounded_once() -> None:
    """In bfloat16, 256 + 1 is 256; gradients of shared tokens rely on torch not adding one by one."""
    packed = PackedRows.from_rows([[7]] * 320)
    total = torch.ones(1, 4).bfloat16().index_add_(0, packed.repeated, torch.ones(319, 4).bfloat16())
    assert total.tolist() == [[320.0] * 4]


@given(st.lists(st.integers(1, 90), min_size=1, max_size=12))
def test_evened_rows_are_followed_by_rows_that_nobody_reads(lengths: list[int]) -> None:
    rows = PackedRows.from_rows([[1000 * number + at for at in range(n)] for number, n in enumerate(lengths)])
    evened, tokens = rows.evened, sum(lengths)
    assert len(evened.input_ids) == (tokens if tokens <= 256 else -(-tokens // 64) * 64)
    assert torch.equal(evened.input_ids[:tokens], rows.input_ids)
    assert not evened.input_ids[tokens:].any()
    assert evened.lengths[: len(lengths)].tolist() == lengths
    assert int(evened.lengths.sum()) == len(evened.input_ids)
    assert int(evened.lengths.max()) == max(lengths)
    assert torch.equal(evened.pack(evened.pad(evened.input_ids)), evened.input_ids)
    assert torch.equal(evened.positions[:tokens], rows.positions)


def test_padding_that_is_there_already_is_dropped() -> None:
    rows = PackedRows.from_padded(torch.tensor([[7, 8, 9, -1], [5, -1, -1, -1]]), torch.tensor([3, 1]))
    assert rows.input_ids.tolist() == [7, 8, 9, 5]
    assert rows.pad(rows.input_ids).tolist() == [[7, 8, 9], [5, 5, 5]]


@pytest.mark.parametrize("samples", [1, 4])
def test_samples_of_a_prompt_share_it(samples: int) -> None:
    rows = [[*range(100 * prompt, 100 * prompt + 30), 7000 + sample] for prompt in (1, 2) for sample in range(samples)]
    assert len(PackedRows.from_rows(rows).input_ids) == 2 * (30 + samples)
