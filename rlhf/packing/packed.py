"""Rows of different lengths laid end to end: only attention sees padding, and no token is computed twice.

What several rows begin with, a system prompt or the one prompt of several samples, is kept once for all of them: a
causal model says the same of it in every row.

Notation: b rows, n tokens that are kept, l columns of the padded rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

EVEN_FROM, EVEN = 256, 64  # more tokens than this are made a multiple of that, see `PackedRows.evened`


def rounded_up(number: int, multiple: int) -> int:
    """Return the smallest multiple that is not less."""
    return -(-number // multiple) * multiple


def _missing(tokens: Tensor) -> int:
    """How many tokens (n,) lack, see `PackedRows.evened`."""
    if len(tokens) <= EVEN_FROM:
        return 0
    return rounded_up(len(tokens), EVEN) - len(tokens)


def evened(indices: Tensor) -> Tensor:
    """Repeat the first of many indices (t,) at the end, as `PackedRows.evened` does with tokens and for its reason."""
    return torch.cat([indices, indices[:1].expand(_missing(indices))])


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


class _HeadPlaces(NamedTuple):
    """`sources`, `slots` and `repeats` of `PackedRows` for each head: rows of d numbers are what is copied fastest."""

    sources: Tensor  # (b * H * l,)
    slots: Tensor  # (n * H,)
    repeats: Tensor  # (m * H,)


def _taken(x: Tensor, places: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[3]).index_select(0, places).view(-1, x.shape[1], x.shape[3])


@dataclass(frozen=True)
class PackedRows:
    """Token ids of several conversations, one behind the other."""

    input_ids: Tensor  # (n,)
    lengths: Tensor  # (b,) of whole rows, shared beginnings included
    grid: Tensor  # (b, columns of the longest) which of the n stands in each place; in the padding it means nothing

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
    def evened(self) -> "PackedRows":
        """These rows, and behind them some that nobody reads, of token 0, until n is a multiple of 64.

        For bfloat16 on a CPU, where oneDNN writes machine code for every new shape of a matrix product, which takes
        longer than the product (two cores, 1,001 to 1,040 rows x 256 x 688: 7.5 ms the first time, then 0.6), and
        microbatches of rows of different lengths hardly ever have as many tokens as another one.
        """
        tokens, missing = len(self.input_ids), _missing(self.input_ids)
        if not missing:
            return self
        longest = self.grid.shape[1]
        rows, rest = divmod(missing, longest)
        fillers = torch.arange(tokens, tokens + (rows + (rest > 0)) * longest).view(-1, longest)
        return PackedRows(
            torch.cat([self.input_ids, self.input_ids.new_zeros(missing)]),
            torch.cat([self.lengths, self.lengths.new_tensor([longest] * rows + [rest] * (rest > 0))]),
            torch.cat([self.grid, fillers]),
        )

    @cached_property
    def width(self) -> int:
        """Columns of the padded rows: tokens of the longest, above 16 rounded up to a multiple of 16."""
        longest = self.grid.shape[1]
        return longest if longest <= 16 else rounded_up(longest, 16)

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

    def split_heads(self, x: Tensor) -> Tensor:
        """Lay heads (n, H, d) out as attention reads them, (b, H, l, d); what stands in the padding means nothing."""
        sources = self._heads(x.shape[1]).sources
        return x.reshape(-1, x.shape[2]).index_select(0, sources).view(-1, x.shape[1], self.width, x.shape[2])

    def merge_heads(self, x: Tensor) -> Tensor:
        """Take (n, H, d) out of what is laid out like that, each token from its first place."""
        return _taken(x, self._heads(x.shape[1]).slots)

    def repeated_heads(self, x: Tensor) -> Tensor:
        """Take out of it the places that repeat a token of another row, (m, H, d)."""
        return _taken(x, self._heads(x.shape[1]).repeats)

    def pad(self, values: Tensor) -> Tensor:
        """Lay (n, ...) out as (b, columns of the longest, ...); what stands in the padding means nothing."""
        return values[self.sources.view(-1, self.width)[:, : self.grid.shape[1]]]

    def pack(self, values: Tensor) -> Tensor:
        """Take (n, ...) out of what is laid out like that, each token from its first place."""
        return values[self.slots // self.width, self.positions]

    def _heads(self, heads: int) -> "_HeadPlaces":
        if heads not in self._places:
            number = torch.arange(heads, device=self.lengths.device)

            def of_each(places: Tensor) -> Tensor:
                row, column = places[:, None] // self.width, places[:, None] % self.width
                return ((row * heads + number) * self.width + column).flatten()

            sources = self.sources.view(-1, 1, self.width) * heads + number[:, None]
            self._places[heads] = _HeadPlaces(sources.flatten(), of_each(self.slots), of_each(self.repeats))
        return self._places[heads]

    @cached_property
    def _places(self) -> dict[int, "_HeadPlaces"]:
        return {}  # for numbers of heads, as they are asked for: every block asks for the same
