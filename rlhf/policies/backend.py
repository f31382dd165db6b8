"""The one door to a faster way of running a model, and what may be asked behind it.

`DecoderOnly` and the sampler each ask `backend_for` once and hold what they get. A `Backend` answers None to what it
cannot run at the moment, and a caller without one holds None: either way the plain way in torch runs, with the same
numbers up to rounding. Which way runs follows from these objects alone: there is no switch for the whole process.
"""

import importlib
import logging
from functools import cache, partial
from typing import Any, Protocol

from torch import Tensor, nn

from rlhf.errors import ModelError
from rlhf.launch.runtime import Runtime
from rlhf.packing.packed import PackedRows
from rlhf.policies import head

logger = logging.getLogger(__name__)


class Decoder(Protocol):
    """Decodes token by token, without autograd; the model must not change in the meantime."""

    def prefill(self, prompts: PackedRows) -> tuple[Tensor, Any]:
        """Return the hidden states (b, D) of the last tokens of b prompts, and a `DynamicCache` of all of them."""
        ...

    def step(self, token_ids: Tensor, positions: Tensor, cache: Any) -> Tensor:
        """Return the hidden states (n, D) of the next tokens (n,) of rows, and put them into a `SlotCache`."""
        ...


class Backend(Protocol):
    """A faster way of running one model; None is its answer to what it cannot run at the moment.

    Notation: n tokens, t of them read, d hidden size, V vocabulary, v tokens of a tile of it.
    """

    def hidden_states(self, rows: PackedRows, read: Tensor) -> Tensor | None:
        """Return the hidden states (t, d) of the tokens `read` (t,), under the precision of autocast."""
        ...

    def decoder(self, columns: int) -> Decoder | None:
        """Return a decoder for rows of at most `columns` tokens."""
        ...

    def tile_softmax(self, logits: Tensor, temperature: float, powers: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Return max z and sum exp(z - max z), (n,) each, of z = logits (v, n) / temperature; see `logprobs`."""
        ...

    def rounded_product(self, weight: Tensor, hidden: Tensor) -> Tensor | None:
        """Return weight (v, d) @ hidden' (d, n) in float32, from factors rounded to bfloat16."""
        ...

    def product(self, weight: Tensor, hidden: Tensor) -> Tensor | None:
        """Return hidden (n, d) @ weight' (d, V) of few rows and many weights, without autograd."""
        ...


def backend_for(model: nn.Module, runtime: Runtime) -> Backend | None:
    """Return a backend for a model, or None where there is none; one line of the log says which, or why not.

    Args:
        model: A transformers model, possibly with peft adapters.
        runtime: Where it runs; `compile_kernels` decides whether C++ may be compiled.

    Raises:
        ModelError: `compile_kernels` is True, and there is no C++ compiler.
    """
    backend, answer = _backend_and_answer(model, runtime)
    _log_once(answer)
    return backend


def _backend_and_answer(model: nn.Module, runtime: Runtime) -> tuple[Backend | None, str]:
    plain = "models run in plain torch: "
    if runtime.device.type != "cpu":
        return None, f"{plain}the device is {runtime.device.type}, and the compiled backend is for CPUs"
    if runtime.compile_kernels is False:
        return None, f"{plain}runtime.compile_kernels is false"
    try:
        compiled: Any = importlib.import_module("rlhf.cpu.backend")
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("rlhf.cpu"):
            raise
        return None, f"{plain}the package rlhf.cpu is missing"
    if runtime.compile_kernels and not compiled.has_compiler():
        raise ModelError("compile_kernels needs a C++ compiler: install g++ (or name one in CXX), or set it to false")
    reason = compiled.reason_against(head.trunk(model))
    if reason is not None:
        return None, f"{plain}{reason}"
    backend: Backend = compiled.CpuBackend(partial(head.trunk, model))
    return backend, "models run in compiled code (rlhf.cpu), in plain torch what that does not know"


@cache
def _log_once(answer: str) -> None:
    logger.info(answer)
