"""Compiled decoding: against torch's operations in float64, for every number of rows, and where it is left to torch."""

import copy
import logging

import pytest
import torch
from native_helpers import multiplies_bfloat16, recorded_calls
from ppo_helpers import tiny, with_lora
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from rlhf.cpu import native, native_decoding
from rlhf.cpu.decoding import Decoder
from rlhf.generation.cache import SlotCache
from rlhf.generation.sampler import Request, Sampler, SamplingParameters
from rlhf.packing.packed import PackedRows
from rlhf.policies import head

SIZES = {
    "vocab_size": 40, "hidden_size": 48, "intermediate_size": 88, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "initializer_range": 0.3,
}  # fmt: skip


def llama(**options):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES | options)).eval()


def qwen():
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            nn.init.normal_(parameter, mean="norm" in name, std=0.5)
    return model


MODELS = {
    "llama": llama,
    "large heads": lambda: llama(head_dim=80, num_key_value_heads=6),
    "large weights": lambda: llama(initializer_range=1.0),  # scores and gates far from 0
    "qwen": qwen,
}


@pytest.fixture
def calls(monkeypatch):
    """The names of the compiled functions that were called."""
    return recorded_calls(monkeypatch, native_decoding)


def numbers(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def decoded(model, count, *, steps=3, first=0):
    """Hidden states (steps, n, D) of rows of different lengths, and the keys and values that they leave."""
    trunk, lengths = head.trunk(model), torch.arange(first, first + count) * 5 % 23 + 1
    ids = torch.arange(200).repeat(64, 1).mul(torch.arange(3, 67)[:, None]).remainder(40)[first : first + count]
    cache, rows = SlotCache(trunk.config.num_hidden_layers, count, 29, torch.device("cpu")), torch.arange(count)
    with torch.inference_mode():
        decoder = Decoder(trunk)
        _, prefilled = decoder.prefill(PackedRows.from_padded(ids, lengths))
        cache.insert(rows, prefilled, lengths)
        hidden = []
        for _ in range(steps):
            mask, columns = cache.begin_step(count, next(trunk.parameters()).dtype), cache.lengths.clone()
            hidden.append(decoder.step(ids[rows, columns], columns, mask, cache))
            cache.lengths += 1
    return torch.stack(hidden), [(layer.keys, layer.values) for layer in cache.layers]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("count", [1, 7, 16, 17, 40])
def test_a_step_is_that_of_float64(name, count, compiled, calls):
    model = MODELS[name]()
    hidden, kept = decoded(model, count)
    assert calls == ["decode_float32"] * 3
    exact, exact_kept = decoded(model.double(), count)
    assert len(calls) == 3
    tolerance = {"rtol": 0, "atol": 1e-3 if name == "large weights" else 3e-5}
    torch.testing.assert_close(hidden, exact.float(), **tolerance)
    for (keys, values), (exact_keys, exact_values) in zip(kept, exact_kept, strict=True):
        torch.testing.assert_close(keys, exact_keys.float(), **{**tolerance, "rtol": 1e-5})
        torch.testing.assert_close(values, exact_values.float(), **{**tolerance, "rtol": 1e-5})


@pytest.mark.parametrize("name", ["llama", "large heads", "qwen"])
@pytest.mark.parametrize("count", [7, 16, 17])
def test_in_bfloat16_it_is_as_near_to_the_exact_numbers_as_operations_of_torch(name, count, compiled, calls):
    if not multiplies_bfloat16():
        pytest.skip("this processor has no AVX-512 BF16")
    model = MODELS[name]().bfloat16()
    hidden, _ = decoded(model, count)
    assert calls == ["decode_bfloat16"] * 3
    native.compile_kernels(False)
    rounded, _ = decoded(model, count)
    exact, _ = decoded(copy.deepcopy(model).double(), count)
    error, others = ((one.double() - exact).square().mean().sqrt().item() for one in (hidden, rounded))
    assert 0 < error < 1.1 * others < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rows_result_does_not_depend_on_its_company(dtype, compiled):
    if dtype == torch.bfloat16 and not multiplies_bfloat16():
        pytest.skip("this processor has no AVX-512 BF16")
    trunk = llama().to(dtype).model
    x, (cos, sin) = numbers(40, 48).to(dtype), numbers(2, 40, 8)
    keys, values = numbers(2, 2, 40, 2, 29, 16).to(dtype)

    def after_a_step(rows):
        cache = SlotCache(2, len(rows), 29, torch.device("cpu"))
        for number, layer in enumerate(cache.layers):
            layer.keys, layer.values = keys[number, rows].clone(), values[number, rows].clone()
        cache.lengths = rows % 28
        return Decoder(trunk).native.step(x[rows], cos[rows], sin[rows], cache)

    with torch.inference_mode():
        together = after_a_step(torch.arange(40))
        for row in range(40):
            assert torch.equal(after_a_step(torch.tensor([row]))[0], together[row])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 8, 16, 23, 64])
@pytest.mark.parametrize("features", [1, 17, 64])
def test_a_layer_is_applied_to_rows(features, rows, bias, compiled, calls):
    layer, x = nn.Linear(features, 304, bias=bias), numbers(rows, features)
    expected = x.double() @ layer.weight.double().T + (layer.bias if bias else 0)
    with torch.inference_mode():
        result = native_decoding.linear(layer, x)
        alone = torch.cat([native_decoding.linear(layer, row[None]) for row in x])
    torch.testing.assert_close(result, expected.float().detach(), rtol=0, atol=1e-5)
    assert torch.equal(alone, result)
    assert result.is_contiguous()
    assert calls == ["product_float32"] * (rows + 1)


def test_a_layer_that_the_code_cannot_apply_is_left_to_torch(compiled, calls):
    layer, x = nn.Linear(20, 16), numbers(8, 20)
    with torch.inference_mode():
        assert torch.equal(
            native_decoding.linear(copy.deepcopy(layer).double(), x.double()), layer.double()(x.double())
        )
        layer.float()
        assert native_decoding.linear(nn.Linear(20, 17), x).shape == (8, 17)  # rows of weights come in eights
        gaps = nn.Linear(20, 16)
        gaps.weight.data = gaps.weight.data.T.contiguous().T
        assert torch.equal(native_decoding.linear(gaps, x), gaps(x))
        assert native_decoding.linear(nn.Sequential(layer), x).shape == (8, 16)
        with pytest.raises(RuntimeError, match="dtype"):
            native_decoding.linear(layer, x.bfloat16())
        with pytest.raises(RuntimeError, match="shapes"):
            native_decoding.linear(layer, x[:, :-1])
        native.compile_kernels(False)
        native_decoding.linear(layer, x)
        native.compile_kernels(True)
    assert native_decoding.linear(layer, x).requires_grad  # outside of inference mode gradients are owed
    assert calls == []


def adapted():
    model = with_lora(llama(), target_modules=["o_proj", "gate_proj"], init_lora_weights=False)
    return model.eval()


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: llama().double(), id="float64"),
        pytest.param(lambda: llama(head_dim=8), id="small heads"),
        pytest.param(lambda: llama(intermediate_size=90), id="width not of eights"),
        pytest.param(lambda: llama(mlp_bias=True), id="biases"),
        pytest.param(adapted, id="adapters"),
    ],
)
def test_blocks_that_the_code_cannot_run_are_left_to_torch(make, compiled, calls):
    model = make()
    ours, _ = decoded(model, 5)
    assert calls == []
    exact, _ = decoded(model.double(), 5)
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=3e-5)


def test_adapters_on_queries_keys_and_values_are_merged(compiled, calls):
    model = with_lora(llama(), target_modules=["q_proj", "v_proj"], init_lora_weights=False).eval()
    ours, _ = decoded(model, 5)
    assert calls == ["decode_float32"] * 3
    exact, _ = decoded(model.double(), 5)
    torch.testing.assert_close(ours.double(), exact, rtol=0, atol=3e-5)


def test_a_compiler_that_fails_costs_speed_alone(failing_compiler, caplog):
    layer, x = nn.Linear(20, 16), numbers(8, 20)
    with torch.inference_mode(), caplog.at_level(logging.WARNING):
        assert torch.equal(native_decoding.linear(layer, x), layer(x))
        decoded(llama(), 3)
    assert all("unrecognised option -fopenmp" in message for message in caplog.messages)
    assert [message.startswith("decoding goes on with torch's operations") for message in caplog.messages].count(
        True
    ) == 1


@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_the_sampler_says_the_same_with_it(batch_size, compiled, calls):
    parameters = SamplingParameters(stop_token_ids=(1,), batch_size=batch_size)
    requests = [Request(prompt_ids=[2 + i, 3], key=i, max_tokens=9) for i in range(5)]

    def said():
        return Sampler(tiny(hidden_size=32).eval(), parameters)(requests)

    own = said()
    count = len(calls)
    native.compile_kernels(False)
    plain = said()
    assert count == len(calls) > 0
    assert set(calls) == {"decode_float32", "product_float32"}
    assert [one.token_ids for one in own] == [one.token_ids for one in plain]
    for one, other in zip(own, plain, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)
