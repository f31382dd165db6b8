"""Rows of different lengths laid end to end: only attention sees padding, and no token is computed twice.

What several rows begin with, a system prompt or the one prompt of several samples, is kept once for all of them: a
causal model says the same of it in every row.

Notation: b rows, n tokens that are kept, l columns of the padded rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


def rounded_up(number: int, multiple: int) -> int:
    """Return the smallest multiple that is not less."""
    return -(-number // multiple) * multiple


def _owners(input_ids: Tensor, real: Tensor) -> Tensor:
    """Return which row's token stands in each place (b, l): rows share one as long as they agree from the start."""
    marked = input_ids.masked_fill(~real, -1)
    rows = marked.tolist()
    order = torch.tensor(sorted(range(len(rows)), key=rows.__getitem__), device=input_ids.device)
    # Rows that begin alike are neighbours now: what a row shares with any one above, it shares with the next above.
    ordered, ranks = marked[order], torch.arange(len(order), device=order.device)[:, None]
    alike = ((ordered[1:] == ordered[:-1]) & (ordered[1:] >= 0)).cumprod(1).bool()
    own = torch.cat([alike.new_ones(1, alike.shape[1]), ~alike])
    owners = order[torch.where(own, ranks, 0).cummax(0).values]
    return torch.empty_like(owners).index_copy_(0, order, owners)


@dataclass(frozen=True)
class PackedRows:
    """Token ids of several conversations, one behind the other."""

    input_ids: Tensor  # (n,)
    lengths: Tensor  # (b,) of whole rows, shared beginnings included
    grid: Tensor  # (b, l) which of the n stands in each place; in the padding it means nothing

    @classmethod
    def from_padded(cls, input_ids: Tensor, lengths: Tensor) -> "PackedRows":
        """Drop the padding on the right of rows (b, l), and what repeats the beginning of another row."""
        input_ids = input_ids[:, : int(lengths.max())]
        real = torch.arange(input_ids.shape[1], device=input_ids.device) < lengths[:, None]
        owners = _owners(input_ids, real)
        kept = real & (owners == torch.arange(len(owners), device=owners.device)[:, None])
        numbers = kept.flatten().cumsum(0).view_as(kept) - 1
        return cls(input_ids[kept], lengths, numbers.gather(0, owners))

    @classmethod
    def from_rows(cls, rows: Sequence[Sequence[int]], device: torch.device | None = None) -> "PackedRows":
        """Pack rows of any lengths."""
        width = max(map(len, rows))
        padded = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
        return cls.from_padded(padded, torch.tensor([len(row) for row in rows], device=device))

    @cached_property
    def width(self) -> int:
        """Columns of the padded rows: tokens of the longest."""
        return self.grid.shape[1]

    @cached_property
    def last(self) -> Tensor:
        """The last token of each row, (b,)."""
        return self.grid.gather(1, self.lengths[:, None] - 1).squeeze(1)

    @cached_property
    def positions(self) -> Tensor:
        """Where in its row each token stands, (n,)."""
        return self.slots % self.width

    @cached_property
    def sources(self) -> Tensor:
        """Which token stands in each place of the flattened padded rows, (b * l,); padding repeats a row's last."""
        columns = torch.arange(self.width, device=self.lengths.device)
        return self.grid.gather(1, torch.minimum(columns, self.lengths[:, None] - 1)).flatten()

    @cached_property
    def slots(self) -> Tensor:
        """The first place of each token in the flattened padded rows, (n,)."""
        real = self._real.nonzero().squeeze(1)
        none = torch.full_like(self.input_ids, len(self.sources))
        return none.scatter_reduce(0, self.sources[real], real, "amin")

    @cached_property
    def first(self) -> Tensor:
        """Whether a place of the flattened padded rows is the first of its token, (b * l,)."""
        return torch.zeros_like(self._real).index_fill_(0, self.slots, True)

    @cached_property
    def repeats(self) -> Tensor:
        """The places that repeat a token of another row, (m,)."""
        return (self._real & ~self.first).nonzero().squeeze(1)

    @cached_property
    def repeated(self) -> Tensor:
        """Which token stands in each place of `repeats`, (m,)."""
        return self.sources[self.repeats]

    @cached_property
    def begins(self) -> Tensor:
        """How many tokens at the start of each row are an earlier row's too, (b,): `repeats`, row by row."""
        return (self._real & ~self.first).view(-1, self.width).sum(1)

    @cached_property
    def begins_before(self) -> Tensor:
        """The sum of `begins` of earlier rows, (b,)."""
        return self.begins.cumsum(0) - self.begins

    @cached_property
    def _real(self) -> Tensor:
        columns = torch.arange(self.width, device=self.lengths.device)
        return (columns < self.lengths[:, None]).flatten()

    def pad(self, values: Tensor) -> Tensor:
        """Lay (n, ...) out as (b, l, ...); what stands in the padding means nothing."""
        return values[self.sources.view(-1, self.width)]

    def pack(self, values: Tensor) -> Tensor:
        """Take (n, ...) out of what is laid out like that, each token from its first place."""
        return values[self.slots // self.width, self.positions]
