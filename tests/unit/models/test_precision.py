"""Which precision `dtype` means on which machine, and who is told that bfloat16 is slow here."""

import logging

import pytest
import torch
from ppo_helpers import make_trainer, prompts, tiny

from rlhf.config.model import ArchitectureConfig, ModelConfig
from rlhf.models import precision


@pytest.fixture(params=[True, False], ids=["bfloat16 processor", "float32 processor"])
def fast(request, monkeypatch):
    """Whether the processor multiplies bfloat16."""
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: request.param)
    precision.warn_of_slow_bfloat16.cache_clear()
    yield request.param
    precision.warn_of_slow_bfloat16.cache_clear()


def model(dtype):
    return ModelConfig(architecture=ArchitectureConfig(), dtype=dtype)


def test_auto_takes_bfloat16_where_it_is_fast(fast, caplog):
    assert precision.uses_bfloat16(model("auto")) is fast
    assert not precision.uses_bfloat16(model("float32"))
    assert not caplog.records


def test_bfloat16_by_name_is_taken_anywhere_and_warned_of_once(fast, caplog):
    with caplog.at_level(logging.WARNING):
        assert all(precision.uses_bfloat16(model("bfloat16")) for _ in range(3))
    assert [("does not multiply bfloat16" in record.message) for record in caplog.records] == [True] * (not fast)


def test_the_trainer_warns_too(fast, caplog, tmp_path):
    with caplog.at_level(logging.WARNING):
        make_trainer(tmp_path, tiny(), reward_model=len, train_dataset=prompts([[3]]), bf16=True)
    assert any("leave bf16 out" in record.message for record in caplog.records) is not fast


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
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert precision.multiplies_bfloat16.__wrapped__() is expected


def test_an_older_torch_that_does_not_tell_computes_in_float32(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert precision.multiplies_bfloat16.__wrapped__() is False


@pytest.mark.parametrize("supported", [True, False])
def test_a_gpu_decides_where_there_is_one(supported, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: supported)
    assert precision.multiplies_bfloat16.__wrapped__() is supported
