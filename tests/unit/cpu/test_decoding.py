"""Compiled decoding against whole rows through transformers' modules in float64, for every number of rows."""

import copy

import pytest
import torch
from cpu_helpers import BFLOAT16, COMPILED, PLAIN, adapted, llama, near, numbers, packed, qwen2
from torch import nn

from rlhf.config.ppo import RolloutConfig
from rlhf.cpu import decoding
from rlhf.cpu.decoding import Decoder
from rlhf.generation.cache import SlotCache
from rlhf.generation.generator import Request
from rlhf.generation.sampler import Sampler
from rlhf.packing.packed import PackedRows
from rlhf.policies import head

MODELS = {
    "llama": llama,
    "large heads": lambda: llama(head_dim=96, num_key_value_heads=3),
    "large weights": lambda: llama(initializer_range=0.5),  # scores and gates far from 0
    "qwen2": qwen2,
    "adapters": adapted,
}


def decoded(model, count, *, steps=3):
    """Hidden states (steps, n, D) of rows of different lengths, and those of whole rows in float64."""
    trunk, lengths = head.trunk(model), torch.arange(count) * 5 % 23 + 1
    ids = torch.arange(200).repeat(count, 1).mul(torch.arange(3, 3 + count)[:, None]).remainder(40)
    cache, rows = SlotCache(trunk.config.num_hidden_layers, count, 29, torch.device("cpu")), torch.arange(count)
    hidden, expected = [], []
    with torch.inference_mode():
        whole = copy.deepcopy(trunk).double()(input_ids=ids[:, :29]).last_hidden_state
        decoder = Decoder(trunk)
        last, prefilled = decoder.prefill(PackedRows.from_padded(ids, lengths))
        near(last, whole[rows, lengths - 1], 1e-2 if last.dtype == torch.bfloat16 else 1e-5)
        cache.insert(rows, prefilled, lengths)
        for _ in range(steps):
            columns = cache.lengths.clone()
            hidden.append(decoder.step(ids[rows, columns], columns, cache))
            expected.append(whole[rows, columns])
            cache.lengths += 1
    return torch.stack(hidden), torch.stack(expected)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("count", [1, 7, 16, 17, 40])
def test_steps_give_what_whole_rows_give(name, count):
    near(*decoded(MODELS[name](), count), 1e-4 if name == "large weights" else 1e-5)


@pytest.mark.parametrize("dtype", [BFLOAT16])
def test_in_bfloat16_it_is_near_to_the_exact_numbers(dtype):
    near(*decoded(llama().to(dtype), 17), 3e-2)


def test_a_rows_result_does_not_depend_on_its_company():
    trunk = llama().model
    ids, keys, values = torch.arange(40), numbers(2, 40, 1, 29, 32), numbers(2, 40, 1, 29, 32, seed=1)

    def after_a_step(rows):
        cache = SlotCache(2, len(rows), 29, torch.device("cpu"))
        for number, layer in enumerate(cache.layers):
            layer.keys, layer.values = keys[number, rows].clone(), values[number, rows].clone()
        cache.lengths = rows % 28
        return Decoder(trunk).step(ids[rows], cache.lengths.clone(), cache)

    with torch.inference_mode():
        together = after_a_step(torch.arange(40))
        for row in (0, 1, 17, 39):
            assert torch.equal(after_a_step(torch.tensor([row]))[0], together[row])


def test_small_heads_are_refused():
    assert decoding.can_run(llama().model)
    assert not decoding.can_run(llama(head_dim=24, num_key_value_heads=3).model)


@pytest.mark.parametrize("rows", [1, 16, 23])
@pytest.mark.parametrize("columns", [1, 17, 64])
@pytest.mark.parametrize("outputs", [304, 14])
def test_a_matrix_is_applied_to_rows(rows, columns, outputs):
    weight, x = numbers(outputs, columns), numbers(rows, columns)
    result = decoding.product(weight, x)
    torch.testing.assert_close(result, (x.double() @ weight.double().T).float(), rtol=1e-6, atol=2e-5)
    assert result.is_contiguous()
    assert torch.equal(torch.cat([decoding.product(weight, row[None]) for row in x]), result)


def test_a_matrix_that_the_code_cannot_apply_is_refused():
    weight, x = numbers(16, 20), numbers(8, 20)
    assert decoding.product(weight, x) is not None
    assert decoding.product(weight.double(), x.double()) is None
    assert decoding.product(weight.bfloat16(), x) is None
    assert decoding.product(weight[:15], x) is None  # rows of weights come in pairs
    assert decoding.product(numbers(20, 16).T, x) is None
    assert decoding.product(nn.Parameter(weight), x) is None  # outside of inference gradients are owed
    with torch.inference_mode():
        assert decoding.product(nn.Parameter(weight), x) is not None


def with_bias():
    """A Llama whose output layer has a bias, by which two tokens are much likelier than the others."""
    model = llama()
    model.lm_head = nn.Linear(96, 40)
    model.lm_head.bias.data = 5.0 * (torch.arange(40) % 20 == 7)
    return model


@pytest.mark.parametrize("make", [llama, adapted, with_bias])
@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_the_sampler_says_the_same_with_it(make, batch_size):
    requests = [Request(prompt_ids=[2 + i, 3], key=i, max_tokens=9) for i in range(5)]
    model, settings = make(), RolloutConfig(batch_size=batch_size)
    samplers = [Sampler(model, settings, (1,), runtime=runtime) for runtime in (COMPILED, PLAIN)]
    assert samplers[0].backend.decoder(11) is not None
    assert samplers[1].backend is None
    own, plain = (sampler(requests) for sampler in samplers)
    assert [one.token_ids for one in own] == [one.token_ids for one in plain]
    for one, other in zip(own, plain, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_prompts_leave_keys_and_values_as_the_modules_do():
    model, rows = llama(), packed([9, 4, 7], 3)
    with torch.inference_mode():
        _, ours = Decoder(model.model).prefill(rows)
        theirs = model.model(input_ids=rows.pad(rows.input_ids), use_cache=True).past_key_values
    for row, length in enumerate([9, 4, 7]):
        for own, other in zip(ours.layers, theirs.layers, strict=True):
            near(own.keys[row, :, :length], other.keys[row, :, :length], 1e-5)
            near(own.values[row, :, :length], other.values[row, :, :length], 1e-5)
