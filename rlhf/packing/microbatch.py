"""Which rows one forward and backward pass takes, and where in them the response tokens stand.

Notation: B rows, L tokens of the longest, T response tokens of the row with the most. Per-token quantities live on the
T axis: response tokens only, in order, padded on the right. What the rows mean is not known here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.packing.packed import PackedRows


@dataclass(frozen=True)
class ResponseRows:
    """Conversations in tensors, and which of their tokens are the policy's own."""

    input_ids: Tensor  # (B, L) right-padded conversations
    lengths: Tensor  # (B,) tokens of each conversation
    positions: Tensor  # (B, T) where in its conversation each response token stands
    mask: Tensor  # (B, T) True where there is a response token; a prefix of each row

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.input_ids.device


def lay_out(
    token_ids: Sequence[Sequence[int]], response_masks: Sequence[Sequence[bool]], device: torch.device
) -> ResponseRows:
    """Lay conversations out in tensors.

    Args:
        token_ids: (B,) conversations.
        response_masks: (B,) True where a token is the policy's own; as long as the conversations.
        device: Where the tensors will be.
    """
    length, width = max(map(len, token_ids)), max(map(sum, response_masks))
    input_ids = torch.zeros(len(token_ids), length, dtype=torch.long)
    positions = torch.zeros(len(token_ids), width, dtype=torch.long)
    mask = torch.zeros(len(token_ids), width, dtype=torch.bool)
    for row, (ids, own) in enumerate(zip(token_ids, response_masks, strict=True)):
        input_ids[row, : len(ids)] = torch.tensor(ids)
        where = torch.tensor(own).nonzero().squeeze(-1)
        positions[row, : len(where)], mask[row, : len(where)] = where, True
    lengths = torch.tensor([len(ids) for ids in token_ids])
    return ResponseRows(*(tensor.to(device) for tensor in (input_ids, lengths, positions, mask)))


@dataclass(frozen=True)
class Microbatch:
    """The rows of one forward and backward pass, and where their t response tokens stand among their n tokens."""

    rows: Tensor  # (b,) rows of the batch
    tokens: PackedRows  # the n tokens of these rows, shared beginnings once
    predictors: Tensor  # (t,) the token whose hidden state predicts each response token
    last: Tensor  # (b,) each row's last token
    targets: Tensor  # (t,) the response tokens
    counts: bool  # False for a filler that only keeps processes in step: its loss is multiplied by 0


def partition(lengths: Sequence[int], rows: Sequence[int], budget: int, rank: int, world: int) -> list[list[int]]:
    """Cut rows into microbatches of at most `budget` padded tokens, for one of `world` processes.

    Rows are sorted by length, so that a microbatch has little padding, and dealt out in turn, so that processes have
    equal work. Every process gets the same number of microbatches; a short one gets empty ones at its end.

    Args:
        lengths: (B,) tokens of each row of the batch.
        rows: The rows to cut.
        budget: Tokens of one microbatch, padding included; a longer row gets a microbatch of its own.
        rank: Which share to return.
        world: Number of processes.
    """
    ordered = sorted(rows, key=lambda row: (-lengths[row], row))
    shares = [_fill(lengths, ordered[start::world], budget) for start in range(world)]
    most = max(len(share) for share in shares)
    return shares[rank] + [[] for _ in range(most - len(shares[rank]))]


def _fill(lengths: Sequence[int], ordered: Sequence[int], budget: int) -> list[list[int]]:
    filled: list[list[int]] = []
    for row in ordered:
        # The first row is the longest: it sets the width of its microbatch.
        if filled and (len(filled[-1]) + 1) * lengths[filled[-1][0]] <= budget:
            filled[-1].append(row)
        else:
            filled.append([row])
    return filled


def microbatches(
    batch: ResponseRows, rows: Sequence[int], budget: int, rank: int = 0, world: int = 1
) -> Iterator[Microbatch]:
    """Yield this process's microbatches of the given rows; see `partition`."""
    for part in partition(batch.lengths.tolist(), rows, budget, rank, world):
        yield microbatch(batch, part or [int(batch.lengths.argmin())], counts=bool(part))


def microbatch(batch: ResponseRows, part: Sequence[int], *, counts: bool = True) -> Microbatch:
    """Make one microbatch of some rows."""
    rows = torch.tensor(part, device=batch.device)
    tokens = PackedRows.from_padded(batch.input_ids[rows], batch.lengths[rows])
    mask = batch.mask[rows]
    row, place = mask.nonzero()[:, 0], batch.positions[rows][mask]  # of each response token, (t,)
    return Microbatch(
        rows=rows,
        tokens=tokens,
        predictors=tokens.grid[row, place - 1],  # the state before a token predicts it
        last=tokens.last,
        targets=batch.input_ids[rows][row, place],
        counts=counts,
    )
