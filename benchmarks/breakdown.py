"""What an iteration of our trainer spends its time on: matrix products, attention, the rest, by torch's profiler.

The profiler costs time itself, most where operations are small: these seconds are for comparison with each other.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.shapes import Shape, build
from benchmarks.trainers import PHASES, Mode, shape_options, train
from rlhf.cpu import attention, blocks, decoding, output_layer
from rlhf.ppo.trainer import PPO

KINDS = ("products", "attention", "other")
_COMPILED = "compiled "  # before the name of a C++ function, which the profiler would not see
_PRODUCTS = ("aten::mm", "aten::addmm", "aten::addmm_", *(_COMPILED + name for name in (
    "attention_input", "attention_input_backward", "block_output", "block_output_backward",
    "decode", "product_float32", "rounded_product",
)))  # fmt: skip  # compiled decoding and blocks are mostly products
_ATTENTION = (_COMPILED + "attention", "aten::bmm", "aten::_softmax", "aten::_softmax_backward_data")

Seconds = dict[str, dict[str, float]]


def kind_of(operation: str) -> str:
    """Sort an operation of torch; products are those with weights."""
    if operation in _PRODUCTS:
        return "products"
    return "attention" if operation in _ATTENTION or "scaled_dot_product" in operation else "other"


def breakdown(mode: Mode, shape: Shape) -> Seconds:
    """Profile an iteration behind one that warms up: seconds of every phase, by kind."""
    taken: Seconds = {}
    with warnings.catch_warnings(), ExitStack() as stack:
        warnings.simplefilter("ignore")
        for module in (attention, blocks, decoding, output_layer):
            if (library := module.library()) is not None:
                stack.enter_context(mock.patch.object(module, "library", partial(_Named, library)))
        for phase in PHASES:
            stack.enter_context(_second_call_profiled(phase, taken))
        train(mode, build(shape, None), shape_options(shape, 2))
    return taken


class _Named:
    """A compiled library whose functions the profiler sees."""

    def __init__(self, library: Any) -> None:
        self.library = library

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self.library, name)

        def named(*arguments: Any) -> Any:
            with record_function(_COMPILED + name):
                return function(*arguments)

        return named


@contextmanager
def _second_call_profiled(phase: str, taken: Seconds) -> Iterator[None]:
    plain: Callable[..., Any] = getattr(PPO, phase)
    calls = iter((False, True))

    def watched(*arguments: Any) -> Any:
        if not next(calls):
            return plain(*arguments)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            result = plain(*arguments)
        seconds = dict.fromkeys(KINDS, 0.0)
        for operation in profiler.key_averages():
            seconds[kind_of(operation.key)] += operation.self_cpu_time_total / 1e6
        taken[phase] = {kind: round(value, 4) for kind, value in seconds.items()}
        return result

    with mock.patch.object(PPO, phase, watched):
        yield
