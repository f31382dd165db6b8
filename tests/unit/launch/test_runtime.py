"""Which precision `dtype` means on which machine, and who is told that bfloat16 is slow here."""

import logging

import pytest
import torch

from rlhf.config.model import ArchitectureConfig, ModelConfig
from rlhf.launch import runtime


@pytest.fixture(params=[True, False], ids=["bfloat16 processor", "float32 processor"])
def fast(request, monkeypatch):
    """Whether the processor multiplies bfloat16."""
    monkeypatch.setattr(runtime, "multiplies_bfloat16", lambda device: request.param)
    runtime.warn_of_slow_bfloat16.cache_clear()
    yield request.param
    runtime.warn_of_slow_bfloat16.cache_clear()


def model(dtype):
    return ModelConfig(architecture=ArchitectureConfig(), dtype=dtype)


def test_auto_takes_bfloat16_where_it_is_fast(fast, caplog):
    assert runtime.Runtime.detect(model=model("auto")).bf16 is fast
    assert not runtime.Runtime.detect(model=model("float32")).bf16
    assert not caplog.records


def test_bfloat16_by_name_is_taken_anywhere_and_warned_of_once(fast, caplog):
    with caplog.at_level(logging.WARNING):
        assert all(runtime.Runtime.detect(model=model("bfloat16")).bf16 for _ in range(3))
    assert [("does not multiply bfloat16" in record.message) for record in caplog.records] == [True] * (not fast)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx2": True, "avx512_f": False, "amx_bf16": False, "avx512_bf16": False}, False),
        ({"avx512_f": True, "avx512_bf16": False}, False),
        ({"avx512_f": True, "avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"neon": True, "bf16": False}, False),
        ({"neon": True, "bf16": True}, True),
    ],
)
def test_what_torch_says_of_the_processor_decides(capabilities, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert runtime.multiplies_bfloat16.__wrapped__() is expected


def test_an_older_torch_that_does_not_tell_computes_in_float32(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert runtime.multiplies_bfloat16.__wrapped__() is False


@pytest.mark.parametrize("supported", [True, False])
def test_a_gpu_decides_where_there_is_one(supported, monkeypatch):
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: supported and not including_emulation
    )
    assert runtime.multiplies_bfloat16.__wrapped__("cuda") is supported
