"""Decoder-only transformers models as `Policy`: causal attention, one trunk, one output layer.

The trunk runs in the backend where there is one that can, else through transformers' modules; see `backend`.
"""

import torch
from torch import Tensor, nn

from rlhf.launch.runtime import Runtime
from rlhf.packing.packed import PackedRows
from rlhf.policies import head
from rlhf.policies.backend import backend_for
from rlhf.policies.logprobs import token_logprobs


class DecoderOnly:
    """A causal language model, or a classifier on the same trunk, of which only `states` is asked.

    Args:
        model: A transformers model, possibly with peft adapters.
        runtime: Where and in which precision; trunks run under its autocast, the output layer does not.
    """

    def __init__(self, model: nn.Module, runtime: Runtime) -> None:
        self.model = model
        self.runtime = runtime
        self.backend = backend_for(model, runtime)

    def states(self, rows: PackedRows, read: Tensor) -> Tensor:
        """See `Policy`."""
        with self.runtime.autocast():
            fast = None if self.backend is None else self.backend.hidden_states(rows, read)
            return head.hidden_states(self.model, rows, read) if fast is None else fast

    def logprobs(
        self, states: Tensor, targets: Tensor, temperature: float = 1.0, *, entropy: bool = False
    ) -> tuple[Tensor, Tensor]:
        """See `Policy`."""
        gradient_dtype = torch.bfloat16 if self.runtime.bf16 else None
        return token_logprobs(
            self.model, states, targets, temperature,
            entropy=entropy, gradient_dtype=gradient_dtype, backend=self.backend,
        )  # fmt: skip
