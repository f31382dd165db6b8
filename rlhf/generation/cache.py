"""A key/value cache in which every row stands at its own position, so rows can leave and others take their place.

Row i's tokens lie in columns 0..lengths[i]-1: there is no padding on the left, and what lies beyond a row's length is
hidden by the attention mask. Used only by `sampler`.
"""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache


class _SlotLayer(CacheLayerMixin):  # type: ignore[misc]
    """Keys and values of one block: two buffers of shape (rows, heads, columns, head size)."""

    is_sliding = False
    is_initialized = False

    def __init__(self, cache: "SlotCache") -> None:
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate both buffers on first use, when shapes are known."""
        rows, columns = self.cache.rows, self.cache.columns
        self.keys = key_states.new_zeros(rows, key_states.shape[1], columns, key_states.shape[3])
        self.values = value_states.new_zeros(rows, value_states.shape[1], columns, value_states.shape[3])
        self.is_initialized = True

    def insert(self, rows: Tensor, key_states: Tensor, value_states: Tensor) -> None:
        """Write prefilled states (n, heads, P, head size) into the given rows; what has no column is padding."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        width = min(key_states.shape[2], self.cache.columns)
        self.keys[rows, :, :width] = key_states[:, :, :width]
        self.values[rows, :, :width] = value_states[:, :, :width]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one token's states (n, heads, 1, head size) at each row's position; return what may be attended to."""
        count = key_states.shape[0]
        rows = self.cache.row_numbers[:count]
        self.keys[rows, :, self.cache.lengths[:count]] = key_states[:, :, 0]
        self.values[rows, :, self.cache.lengths[:count]] = value_states[:, :, 0]
        width = self.cache.width
        return self.keys[:count, :, :width], self.values[:count, :, :width]

    def get_seq_length(self) -> int:
        """Columns in use before this token."""
        return self.cache.width - 1

    def get_max_length(self) -> int:
        """Columns that were allocated."""
        return self.cache.columns

    get_max_cache_shape = get_max_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the keys that a mask must cover."""
        return self.cache.width, 0


class SlotCache(Cache):  # type: ignore[misc]
    """Key/value buffers for `rows` conversations of at most `columns` tokens each."""

    def __init__(self, layers: int, rows: int, columns: int, device: torch.device) -> None:
        self.rows, self.columns = rows, columns
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)  # tokens in the cache, per row
        self.row_numbers = torch.arange(rows, device=device)
        self.width = 0  # columns that the current step attends to
        super().__init__(layers=[_SlotLayer(self) for _ in range(layers)])

    def begin_step(self, active: int, dtype: torch.dtype) -> Tensor:
        """Prepare a step of the first `active` rows and return its attention mask.

        Args:
            active: Rows that take part.
            dtype: The model's; the mask is added to attention scores of that dtype.

        Returns:
            (active, 1, 1, width): 0 where a row may attend, the lowest number elsewhere.
        """
        lengths = self.lengths[:active]
        self.width = int(lengths.max()) + 1
        columns = torch.arange(self.width, device=lengths.device)
        hidden = columns[None, :] > lengths[:, None]
        mask = torch.zeros(hidden.shape, dtype=dtype, device=lengths.device)
        return mask.masked_fill_(hidden, torch.finfo(dtype).min)[:, None, None, :]

    def insert(self, rows: Tensor, prefilled: DynamicCache, lengths: Tensor) -> None:
        """Copy prefilled prompts (right-padded) into free rows."""
        for own, other in zip(self.layers, prefilled.layers, strict=True):
            own.insert(rows, other.keys, other.values)
        self.lengths[rows] = lengths

    def move(self, source: int, target: int) -> None:
        """Copy row `source` over row `target`."""
        length = int(self.lengths[source])
        for layer in self.layers:
            layer.keys[target, :, :length] = layer.keys[source, :, :length]
            layer.values[target, :, :length] = layer.values[source, :, :length]
        self.lengths[target] = length
