"""Compiled blocks: against `fused` in float64, in value and gradient, and where they are left to torch."""

import logging
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from native_helpers import BFLOAT16, multiplies_bfloat16, needs_bfloat16, recorded_calls
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf.cpu import fast_trunk, fused, native_blocks
from rlhf.cpu.fused import FeedForward, Heads
from rlhf.cpu.projections import Projection
from rlhf.models.adapters import wrap
from rlhf.packing.packed import PackedRows

NEAR = {torch.float32: 2e-6, torch.bfloat16: 1e-2}  # of the norm of what is compared


@dataclass(frozen=True)
class Sizes:
    """Of a block: D, H * d, K * d, I."""

    size: int
    heads: int
    keys: int
    wide: int


NARROW, ODD, WIDE = Sizes(32, 32, 16, 48), Sizes(48, 80, 16, 112), Sizes(96, 96, 96, 272)


@pytest.fixture
def calls(monkeypatch, compiled):
    """The names of the compiled functions that were called; they are taken for the fastest."""
    monkeypatch.setattr(native_blocks, "_is_fastest", lambda dtype: True)
    return recorded_calls(monkeypatch, native_blocks)


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape) + 1000 * seed))


def plain(weight):
    return Projection(weight, None, None, None, 0.0)


def block(sizes, dtype=torch.float32):
    """The weights of a block, to be trained."""
    shapes = [
        (sizes.heads, sizes.size), (sizes.keys, sizes.size), (sizes.keys, sizes.size), (sizes.size, sizes.heads),
        (sizes.wide, sizes.size), (sizes.wide, sizes.size), (sizes.size, sizes.wide),
    ]  # fmt: skip
    weights = [(numbers(*shape, seed=n) / shape[1] ** 0.5).to(dtype) for n, shape in enumerate(shapes)]
    norms = [1 + 0.3 * numbers(sizes.size, seed=n) for n in range(2)]
    query, key, value, output, gate, up, down = (plain(weight.requires_grad_()) for weight in weights)
    norm, other = (weight.requires_grad_() for weight in norms)
    return Heads(norm, 1e-5, 16, query, key, value), FeedForward(output, other, 1e-5, gate, up, down)


def tensors_of(half):
    return [part.weight if isinstance(part, Projection) else part for part in half if not isinstance(part, float | int)]


def doubled(half):
    """The same weights in float64."""
    parts = [
        plain(part.weight.detach().double().requires_grad_())
        if isinstance(part, Projection)
        else part.detach().double().requires_grad_() if isinstance(part, torch.Tensor) else part
        for part in half
    ]  # fmt: skip
    return type(half)(*parts)


def results(by: Any, heads, layer, x, attended, dtype):
    """Values of both halves, and the gradients of what they were given and of their weights."""
    x, attended = x.clone().requires_grad_(), attended.to(dtype).requires_grad_()
    products, out = by.projections(x, heads, dtype), by.block_output(x, attended, layer, dtype)
    upstream = [numbers(*y.shape, seed=9).to(y.dtype) for y in (products, out)]
    first = torch.autograd.grad(products, [x, *tensors_of(heads)], upstream[0])
    return [products, out, *first, *torch.autograd.grad(out, [x, attended, *tensors_of(layer)], upstream[1])]


def ours_and_exact(sizes, tokens, dtype, weights):
    heads, layer = block(sizes, weights)
    assert native_blocks.can_run(heads, layer, dtype)
    x, attended = 2 * numbers(tokens, sizes.size), numbers(tokens, sizes.heads).to(dtype)
    exact = results(fused, doubled(heads), doubled(layer), x.double(), attended, torch.float64)
    return results(native_blocks, heads, layer, x, attended, dtype), exact


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
@pytest.mark.parametrize(
    ("sizes", "tokens"), [(NARROW, 1), (NARROW, 8), (NARROW, 600), (ODD, 7), (ODD, 33), (WIDE, 70), (WIDE, 258)]
)
def test_values_and_gradients_are_those_of_float64(sizes, tokens, dtype, calls):
    ours, exact = ours_and_exact(sizes, tokens, dtype, torch.float32)
    assert calls == ["project", "finish", "project_backward", "finish_backward"]
    for got, expected in zip(ours, exact, strict=True):
        assert got.isfinite().all()
        assert (got.double() - expected).norm() <= NEAR[dtype] * expected.norm()


@needs_bfloat16
def test_weights_may_be_in_bfloat16_themselves(calls):
    ours, exact = ours_and_exact(ODD, 33, torch.bfloat16, torch.bfloat16)
    assert {got.dtype for got in ours} == {torch.float32, torch.bfloat16}
    for got, expected in zip(ours, exact, strict=True):
        assert (got.double() - expected).norm() <= 1e-2 * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
def test_numbers_do_not_depend_on_threads_or_on_what_is_kept(dtype, calls):
    heads, layer = block(WIDE)
    x, attended = numbers(70, WIDE.size), numbers(70, WIDE.heads)
    before, made = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        made.append(results(native_blocks, heads, layer, x, attended, dtype))
    torch.set_num_threads(before)
    for other in made[1:]:
        assert all(torch.equal(one, two) for one, two in zip(made[0], other, strict=True))
    with torch.no_grad():
        assert torch.equal(native_blocks.projections(x, heads, dtype), made[0][0])
        assert torch.equal(native_blocks.block_output(x, attended.to(dtype), layer, dtype), made[0][1])


def test_gradients_are_made_for_what_is_trained(calls):
    heads, layer = block(NARROW)
    for tensor in (*tensors_of(heads), *tensors_of(layer)):
        tensor.requires_grad_(False)
    layer.down.weight.requires_grad_()
    x = numbers(20, NARROW.size).requires_grad_()
    products = native_blocks.projections(x, heads, torch.float32)
    out = native_blocks.block_output(x, products[:, : NARROW.heads], layer, torch.float32)
    out.square().sum().backward()
    exact = fused.block_output(x, fused.projections(x, heads, torch.float32)[:, : NARROW.heads], layer, torch.float32)
    expected = torch.autograd.grad(exact.square().sum(), [x, layer.down.weight])
    torch.testing.assert_close([x.grad, layer.down.weight.grad], list(expected), rtol=1e-4, atol=1e-4)
    assert all(tensor.grad is None for tensor in (*tensors_of(heads), layer.gate.weight, layer.norm))


CONFIG = LlamaConfig(
    vocab_size=40, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1,
)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
def test_blocks_of_a_trunk_are_run_by_it(dtype, calls, monkeypatch):
    rows = PackedRows.from_rows([[1, 2, 3, 4], [5, 6], [7, 8, 9, 10, 11, 12]])
    read = torch.arange(12)
    trunk, hidden = LlamaForCausalLM(CONFIG).model, {}
    for name, fastest in (("ours", True), ("fused", False)):
        monkeypatch.setattr(native_blocks, "_is_fastest", lambda _, answer=fastest: answer)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            hidden[name] = fast_trunk.run(trunk, rows, read)
    assert calls == ["project", "finish"] * 2
    torch.testing.assert_close(hidden["ours"], hidden["fused"], rtol=0, atol=3 * NEAR[dtype])


@pytest.mark.parametrize(("fastest", "tokens"), [(True, 300), (False, 320)])
def test_tokens_are_evened_for_other_products_alone(fastest, tokens, calls, monkeypatch):
    """It is oneDNN that takes its time for each new number of tokens, and has more to compute for that."""
    monkeypatch.setattr(fast_trunk, "EVENED", {torch.float32})
    monkeypatch.setattr(native_blocks, "_is_fastest", lambda _: fastest)
    seen, by = [], native_blocks if fastest else fused
    run = by.projections
    monkeypatch.setattr(by, "projections", lambda x, *rest: seen.append(len(x)) or run(x, *rest))
    rows = PackedRows.from_rows([[place % 40 for place in range(first, first + 100)] for first in range(3)])
    fast_trunk.run(LlamaForCausalLM(CONFIG).model, rows, torch.arange(10))
    assert seen == [tokens] * 2


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
def test_adapters_that_do_nothing_yet_change_no_bit(dtype, calls):
    """The reference is the policy with its adapters off: where training begins, it is the same policy."""
    model, rows = (
        wrap(LlamaForCausalLM(CONFIG), LoraConfig(r=4, target_modules=["q_proj"])),
        PackedRows.from_rows([[1, 2, 3]]),
    )
    hidden = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        hidden.append(fast_trunk.run(model.base_model.model.model, rows, torch.arange(3)))
        with model.disable_adapter():
            hidden.append(fast_trunk.run(model.base_model.model.model, rows, torch.arange(3)))
    assert torch.equal(*hidden)
    assert calls == []


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda heads: heads._replace(norm=heads.norm.double()), id="norm in float64"),
        pytest.param(lambda heads: heads._replace(key=heads.key._replace(bias=numbers(16))), id="bias"),
        pytest.param(lambda heads: heads._replace(key=heads.key._replace(down=numbers(2, 32))), id="adapter"),
        pytest.param(lambda heads: heads._replace(key=plain(numbers(32, 16).T)), id="with gaps"),
        pytest.param(lambda heads: heads._replace(key=plain(numbers(18, 32))), id="rows not of sixteens"),
        pytest.param(lambda heads: heads._replace(key=plain(numbers(16, 32).bfloat16())), id="other precision"),
        pytest.param(lambda heads: heads._replace(key=plain(numbers(16, 32).to("meta"))), id="elsewhere"),
    ],
)
def test_what_the_code_cannot_run_is_left_to_torch(change, calls):
    heads, layer = block(NARROW)
    assert native_blocks.can_run(heads, layer, torch.float32)
    assert not native_blocks.can_run(change(heads), layer, torch.float32)


def test_precisions_that_it_does_not_have(calls):
    assert not native_blocks.can_run(*map(doubled, block(NARROW)), torch.float64)
    assert not native_blocks.can_run(*block(NARROW), torch.float64)
    assert not native_blocks.can_run(*block(NARROW, torch.bfloat16), torch.float32)
    assert native_blocks.can_run(*block(NARROW), torch.bfloat16) == multiplies_bfloat16()


@pytest.mark.parametrize(
    ("known", "float32", "bfloat16"),
    [
        ({"avx512_f": True, "avx512_bf16": True}, True, True),
        ({"avx512_f": True, "avx512_bf16": True, "amx_bf16": True}, True, False),  # oneDNN's are twice as fast
        ({"avx2": True}, False, False),
        ({}, False, False),
    ],
)
def test_it_is_used_where_nothing_is_faster(known, float32, bfloat16, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    asked = native_blocks._is_fastest.__wrapped__
    assert (asked(torch.float32), asked(torch.bfloat16)) == (float32, bfloat16)


def test_a_compiler_that_fails_costs_speed_alone(failing_compiler, caplog, monkeypatch):
    monkeypatch.setattr(native_blocks, "_is_fastest", lambda dtype: True)
    with caplog.at_level(logging.WARNING):
        assert not native_blocks.can_run(*block(NARROW), torch.float32)
        assert not native_blocks.can_run(*block(NARROW), torch.float32)
    messages = [record.message for record in caplog.records]
    assert len(messages) == 1
    assert messages[0].startswith("blocks are left to torch's operations, because blocks.cpp does not compile")
