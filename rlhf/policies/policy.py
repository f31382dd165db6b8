"""What training, scoring and evaluation ask of a model, whatever its family."""

from typing import Protocol

from torch import Tensor

from rlhf.packing.packed import PackedRows


class Policy(Protocol):
    """A language model that is read only where it is asked to be: nobody holds logits of all tokens.

    Notation: n tokens of any number of rows, t of them read, d hidden size.
    """

    def states(self, rows: PackedRows, read: Tensor) -> Tensor:
        """Return the hidden states (t, d) of the tokens `read` (t,), which index the n tokens of `rows`."""
        ...

    def logprobs(
        self, states: Tensor, targets: Tensor, temperature: float = 1.0, *, entropy: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return log-probabilities (t,) of the tokens `targets` (t,) behind states (t, d), and entropies (t,), in nats.

        Entropies are zeros unless they are asked for. The temperature divides the logits.
        """
        ...
