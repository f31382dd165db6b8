"""The compiled backend: what `policies.backend` hands out for common decoders on CPUs.

`reason_against` compiles everything once, in seconds, or says why it cannot. What may change after that (dropout,
hooks, sharded weights, activation checkpointing) is asked at every call, and answered with None: then the caller takes
the plain way.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from rlhf.cpu import attention, blocks, compiler, decoding, output_layer, trunk
from rlhf.cpu.decoding import Decoder
from rlhf.cpu.weights import is_known_family
from rlhf.packing.packed import PackedRows


def has_compiler() -> bool:
    """Whether there is a C++ compiler."""
    return compiler.found() is not None


def reason_against(trunk_of_model: Any) -> str | None:
    """Say why there is no backend for a trunk, or return None if there is one."""
    if not is_known_family(trunk_of_model):
        return f"{type(trunk_of_model).__name__} is not one of the families that it knows"
    if not has_compiler():
        return "there is no C++ compiler"
    failed = [part.__name__ for part in (attention, blocks, decoding, output_layer) if part.library() is None]
    return f"{failed[0]} does not compile, see the warning" if failed else None


class CpuBackend:
    """Runs one model in compiled code; a caller that holds none runs it plainly.

    Args:
        trunk_of: Returns the model's trunk, as it is at the moment.
    """

    def __init__(self, trunk_of: Callable[[], Any]) -> None:
        self._trunk_of = trunk_of

    def hidden_states(self, rows: PackedRows, read: Tensor) -> Tensor | None:
        """Return the hidden states (t, D) of the tokens `read` (t,) of packed rows."""
        model = self._trunk_of()
        return trunk.run(model, rows, read) if trunk.can_run(model, rows.grid.shape[1]) else None

    def decoder(self, columns: int) -> Decoder | None:
        """Return a decoder of rows of at most `columns` tokens; the model must not change while it is used."""
        model = self._trunk_of()
        return Decoder(model) if trunk.can_run(model, columns) and decoding.can_run(model) else None

    def tile_softmax(self, logits: Tensor, temperature: float, powers: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """See `output_layer.tile_softmax`."""
        return output_layer.tile_softmax(logits, temperature, powers)

    def rounded_product(self, weight: Tensor, hidden: Tensor) -> Tensor | None:
        """See `output_layer.rounded_product`."""
        return output_layer.rounded_product(weight, hidden)

    def product(self, weight: Tensor, hidden: Tensor) -> Tensor | None:
        """See `decoding.product`."""
        return decoding.product(weight, hidden)
