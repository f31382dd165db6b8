"""The door to the compiled backend: when there is one, what the log says, and that nothing else changes."""

import logging
import subprocess
import sys

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rlhf.errors import ModelError
from rlhf.launch.runtime import Runtime
from rlhf.policies import backend as door
from rlhf.policies.backend import backend_for
from rlhf.policies.decoder_only import DecoderOnly

CPU = Runtime(torch.device("cpu"))
compiled = pytest.importorskip("rlhf.cpu.backend")


def tiny(family="llama"):
    if family == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=8, n_embd=16, n_layer=1, n_head=2))
    return LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                                        num_attention_heads=2))  # fmt: skip


@pytest.fixture(autouse=True)
def said(caplog):
    """What the door says; every test is the first one that asks."""
    door._log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger=door.__name__):
        yield lambda: [record.message for record in caplog.records if record.name == door.__name__]


def test_a_known_family_on_a_cpu_has_one(said):
    assert backend_for(tiny(), CPU) is not None
    assert backend_for(tiny(), CPU) is not None
    assert said() == ["models run in compiled code (rlhf.cpu), in plain torch what that does not know"]


@pytest.mark.parametrize(
    ("make", "runtime", "reason"),
    [
        (lambda: tiny("gpt2"), CPU, "GPT2Model is not one of the families that it knows"),
        (tiny, Runtime(torch.device("cpu"), compile_kernels=False), "runtime.compile_kernels is false"),
        (tiny, Runtime(torch.device("cuda")), "the device is cuda, and the compiled backend is for CPUs"),
    ],
)
def test_without_one_the_log_says_why(make, runtime, reason, said):
    assert backend_for(make(), runtime) is None
    assert said() == [f"models run in plain torch: {reason}"]


def test_without_a_compiler_there_is_none_or_an_error(said, monkeypatch):
    monkeypatch.setattr("rlhf.cpu.compiler.found", lambda: None)
    assert backend_for(tiny(), CPU) is None
    assert said() == ["models run in plain torch: there is no C++ compiler"]
    with pytest.raises(ModelError, match="compile_kernels needs a C\\+\\+ compiler"):
        backend_for(tiny(), Runtime(torch.device("cpu"), compile_kernels=True))


def test_code_that_does_not_compile_costs_speed_alone(said, monkeypatch):
    monkeypatch.setattr("rlhf.cpu.blocks.library", lambda: None)
    assert backend_for(tiny(), CPU) is None
    assert said() == ["models run in plain torch: rlhf.cpu.blocks does not compile, see the warning"]


def test_without_the_package_everything_runs(said, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("rlhf.cpu")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rlhf.cpu", None)  # importing it raises ModuleNotFoundError
    policy = DecoderOnly(tiny(), CPU)
    assert policy.backend is None
    assert said() == ["models run in plain torch: the package rlhf.cpu is missing"]


def test_an_import_that_fails_within_the_package_is_an_error(monkeypatch):
    monkeypatch.delitem(sys.modules, "rlhf.cpu.backend")
    monkeypatch.setitem(sys.modules, "transformers.cache_utils", None)
    monkeypatch.delitem(sys.modules, "rlhf.cpu.decoding")
    with pytest.raises(ModuleNotFoundError, match="cache_utils"):
        backend_for(tiny(), CPU)


def test_nothing_changes_for_the_rest_of_the_process():
    """In a process of its own: what is registered and which flags are set, before and after using the backend."""
    program = """
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers import LlamaConfig, LlamaForCausalLM

def state():
    precision = getattr(getattr(torch.backends.mkldnn, "matmul", None), "fp32_precision", None)
    return (sorted(ALL_ATTENTION_FUNCTIONS.valid_keys()), torch.get_num_threads(), torch.is_grad_enabled(), precision,
            torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu"), torch.get_default_dtype())

model = LlamaForCausalLM(LlamaConfig(vocab_size=40, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
                                     num_attention_heads=2, num_key_value_heads=1))
before = state()
from rlhf.cpu import backend
assert state() == before
from rlhf.launch.runtime import Runtime
from rlhf.packing.packed import PackedRows
from rlhf.policies.decoder_only import DecoderOnly
policy, rows = DecoderOnly(model, Runtime(torch.device("cpu"))), PackedRows.from_rows([[1, 2, 3]])
assert policy.backend.hidden_states(rows, rows.last) is not None
policy.logprobs(policy.states(rows, rows.last), torch.tensor([4]))[0].sum().backward()
assert state() == before
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True)
