"""Packing and padding undo each other, and say where each token stands."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf.models.packed import PackedRows

LENGTHS = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def padded(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of distinct numbers, -1 in the padding."""
    rows = torch.full((len(lengths), max(lengths)), -1)
    for number, length in enumerate(lengths):
        rows[number, :length] = torch.arange(length) + 1000 * number
    return rows, torch.tensor(lengths)


@given(LENGTHS)
def test_packing_keeps_every_token_in_order(lengths: list[int]) -> None:
    rows = PackedRows.from_padded(*padded(lengths))
    assert rows.input_ids.tolist() == [
        1000 * number + at for number, length in enumerate(lengths) for at in range(length)
    ]
    assert rows.positions.tolist() == [at for length in lengths for at in range(length)]
    assert rows.input_ids[rows.starts].tolist() == [1000 * number for number in range(len(lengths))]
    more = rows.width - max(lengths)
    assert more == 0 if max(lengths) <= 16 else 0 <= more < 16 and rows.width % 16 == 0


@given(LENGTHS)
def test_padding_and_packing_undo_each_other(lengths: list[int]) -> None:
    original, _ = padded(lengths)
    rows = PackedRows.from_padded(original, torch.tensor(lengths))
    again = rows.pad(rows.input_ids)
    real = torch.arange(rows.width) < rows.lengths[:, None]
    assert torch.equal(rows.real.view_as(again), real)
    assert torch.equal(again[real], original[original >= 0])
    assert torch.equal(rows.pack(again), rows.input_ids)


@given(st.lists(st.integers(1, 90), min_size=1, max_size=12))
def test_evened_rows_are_followed_by_rows_that_nobody_reads(lengths: list[int]) -> None:
    rows = PackedRows.from_padded(*padded(lengths))
    evened, tokens = rows.evened(), sum(lengths)
    assert len(evened.input_ids) == (tokens if tokens <= 256 else -(-tokens // 64) * 64)
    assert torch.equal(evened.input_ids[:tokens], rows.input_ids)
    assert not evened.input_ids[tokens:].any()
    assert evened.lengths[: len(lengths)].tolist() == lengths
    assert int(evened.lengths.sum()) == len(evened.input_ids)
    assert int(evened.lengths.max()) == max(lengths)


def test_padding_holds_tokens_of_its_own_row() -> None:
    rows = PackedRows(torch.tensor([7, 8, 9, 5]), torch.tensor([3, 1]))
    assert rows.pad(rows.input_ids).tolist() == [[7, 8, 9], [5, 5, 5]]
