"""Rows of different lengths laid end to end, so that only attention ever sees padding.

Notation: b rows, n tokens of all rows together, l columns of the padded rows.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


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

    @cached_property
    def width(self) -> int:
        """Columns of the padded rows: tokens of the longest, above 16 rounded up to a multiple of 16."""
        longest = int(self.lengths.max())
        return longest if longest <= 16 else -(-longest // 16) * 16

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
