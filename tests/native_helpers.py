"""What tests of compiled code ask of the processor, and how they see what is called."""

from typing import Any

import pytest
import torch

from rlhf.cpu import native, native_kernels


def multiplies_bfloat16() -> bool:
    """Whether compiled code multiplies bfloat16 here."""
    before = native.compiling()
    native.compile_kernels(None)
    try:
        return native.computes(native_kernels._library, torch.bfloat16)
    finally:
        native.compile_kernels(before)


needs_bfloat16 = pytest.mark.skipif(not multiplies_bfloat16(), reason="this processor does not multiply bfloat16")
BFLOAT16 = pytest.param(torch.bfloat16, marks=needs_bfloat16)


def recorded_calls(monkeypatch: pytest.MonkeyPatch, module: Any) -> list[str]:
    """Return a list that gets the names of the compiled functions that a module calls."""
    made: list[str] = []
    call = module._call

    def recorded(name: str, *arguments: Any, **more: Any) -> None:
        made.append(name)
        call(name, *arguments, **more)

    monkeypatch.setattr(module, "_call", recorded)
    return made
