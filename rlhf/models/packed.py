"""Rows of different lengths laid end to end, so that only attention ever sees padding.

Notation: b rows, n tokens of all rows together, l columns of the padded rows.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

EVEN_FROM, EVEN = 256, 64  # more tokens than this are made a multiple of that, see `PackedRows.evened`


def rounded_up(number: int, multiple: int) -> int:
    """Return the smallest multiple that is not less."""
    return -(-number // multiple) * multiple


@dataclass(frozen=True)
class PackedRows:
    """Token ids of several conversations, one behind the other."""

    input_ids: Tensor  # (n,)
    lengths: Tensor  # (b,)

    @classmethod
    def from_padded(cls, input_ids: Tensor, lengths: Tensor) -> "PackedRows":
        """Drop the padding on the right of rows (b, l)."""
        real = torch.arange(input_ids.shape[1], device=input_ids.device) < lengths[:, None]
        return cls(input_ids[real], lengths)

    def evened(self) -> "PackedRows":
        """Add rows that nobody reads, of token 0, until a CPU gets n in multiples of 64.

        oneDNN writes machine code for every new shape of a matrix product, which takes longer than the product (two
        cores, bfloat16, 1,001 to 1,040 rows x 256 x 688: 7.5 ms the first time, then 0.6), and microbatches of rows of
        different lengths hardly ever have as many tokens as another one.
        """
        missing = rounded_up(len(self.input_ids), EVEN) - len(self.input_ids)
        if not missing or len(self.input_ids) <= EVEN_FROM or self.input_ids.device.type != "cpu":
            return self
        longest = int(self.lengths.max())
        rows, rest = divmod(missing, longest)
        lengths = [longest] * rows + [rest] * (rest > 0)
        return PackedRows(
            torch.cat([self.input_ids, self.input_ids.new_zeros(missing)]),
            torch.cat([self.lengths, self.lengths.new_tensor(lengths)]),
        )

    @cached_property
    def width(self) -> int:
        """Columns of the padded rows: tokens of the longest, above 16 rounded up to a multiple of 16."""
        longest = int(self.lengths.max())
        return longest if longest <= 16 else rounded_up(longest, 16)

    @cached_property
    def starts(self) -> Tensor:
        """Where each row begins, (b,)."""
        return self.lengths.cumsum(0) - self.lengths

    @cached_property
    def positions(self) -> Tensor:
        """Where in its row each token stands, (n,)."""
        tokens = torch.arange(len(self.input_ids), device=self.lengths.device)
        return tokens - self.starts.repeat_interleave(self.lengths)

    @cached_property
    def slots(self) -> Tensor:
        """Where each token stands in the flattened padded rows, (n,)."""
        rows = torch.arange(len(self.lengths), device=self.lengths.device)
        return (rows * self.width).repeat_interleave(self.lengths) + self.positions

    @cached_property
    def sources(self) -> Tensor:
        """Which token stands in each place of the flattened padded rows, (b * l,); padding repeats a row's last."""
        columns = torch.arange(self.width, device=self.lengths.device)
        return (self.starts[:, None] + torch.minimum(columns, self.lengths[:, None] - 1)).flatten()

    @cached_property
    def real(self) -> Tensor:
        """Whether a place of the flattened padded rows holds a token, (b * l,)."""
        columns = torch.arange(self.width, device=self.lengths.device)
        return (columns < self.lengths[:, None]).flatten()

    def pad(self, values: Tensor) -> Tensor:
        """Lay (n, ...) out as (b, l, ...); what stands in the padding means nothing."""
        return values[self.sources].view(len(self.lengths), self.width, *values.shape[1:])

    def pack(self, values: Tensor) -> Tensor:
        """Take (n, ...) out of (b, l, ...)."""
        return values.flatten(0, 1)[self.slots]
