"""What every test starts from."""

import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from rlhf.cpu import native, native_attention, native_blocks, native_decoding, native_kernels


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    """Trainers of earlier tests do not decide how the next one computes."""
    yield
    native.compile_kernels(False)


@pytest.fixture
def compiled() -> None:
    """C++ is compiled where it is first needed."""
    native.compile_kernels(True)


@pytest.fixture
def failing_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """C++ is wanted, and there is a compiler, but nothing that it compiles, now or before."""

    def fails(command: list[str], **_: Any) -> None:
        raise subprocess.CalledProcessError(1, command, stderr="unrecognised option -fopenmp")

    modules = (native_attention, native_blocks, native_decoding, native_kernels)
    for module in modules:
        module._library.cache_clear()
    monkeypatch.setattr(native.subprocess, "run", fails)
    native.compile_kernels(True)
    yield
    for module in modules:
        module._library.cache_clear()
