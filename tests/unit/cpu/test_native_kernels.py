"""Compiled kernels: against the formulas in float64, and where they are left to torch."""

import logging

import pytest
import torch
from native_helpers import BFLOAT16, needs_bfloat16, recorded_calls

from rlhf.cpu import kernels, native_kernels
from rlhf.policies import logprobs


@pytest.fixture
def calls(monkeypatch):
    """The names of the compiled functions that were called."""
    return recorded_calls(monkeypatch, native_kernels)


PRECISIONS = [torch.float32, BFLOAT16]
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-8}  # of results: bfloat16 has 8 digits


def numbers(*shape, spread=1.0):
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def agree(ours, exact, dtypes):
    for got, expected, dtype in zip(ours, exact, dtypes, strict=True):
        assert got.dtype == dtype
        scale = float(expected.abs().max())
        torch.testing.assert_close(got.double(), expected, rtol=ROUNDING[dtype], atol=ROUNDING[dtype] * scale / 8)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(("rows", "size"), [(1, 16), (7, 48), (130, 256)])
def test_norms(rows, size, dtype, compiled, calls):
    x, addend, weight = numbers(rows, size, spread=3), numbers(rows, size).to(dtype), numbers(size)
    wide = x.double(), addend.double(), weight.double(), 1e-5, torch.float64
    agree(kernels.rms_norm(x, weight, 1e-5, dtype), kernels.rms_norm(wide[0], *wide[2:]), [dtype, torch.float32])
    ours = kernels.add_rms_norm(x, addend, weight, 1e-5, dtype)
    agree(ours, kernels.add_rms_norm(*wide), [torch.float32, dtype, torch.float32])
    assert calls == ["rms_norm"] * 2


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize(("rows", "size"), [(1, 16), (64, 32), (65, 48), (130, 256)])
def test_gradients_of_norms(rows, size, residual, dtype, compiled, calls):
    x, weight, grad = numbers(rows, size, spread=3), numbers(size), numbers(rows, size).to(dtype)
    inverse = (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()
    straight = numbers(rows, size, spread=2) if residual else None
    ours = kernels.rms_norm_backward(grad, x, inverse, weight, straight)
    wide = [None if part is None else part.double() for part in (grad, x, inverse, weight, straight)]
    agree(ours, kernels.rms_norm_backward(*wide), [torch.float32] * 2)
    assert calls == ["rms_norm_backward"]


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("spread", [1.0, 40.0])  # 40: sigmoids of 0 and 1
def test_gates(spread, dtype, compiled, calls):
    gate, up, grad = (numbers(5, size, spread=by).to(dtype)[:, :48]
                      for size, by in ((48, spread), (49, 1.0), (50, 1.0)))  # fmt: skip
    both, grad = torch.cat([gate, up], 1), grad.contiguous()
    agree([kernels.gated(both)], [kernels.gated(both.double())], [dtype])
    agree(kernels.gated_backward(grad, both), kernels.gated_backward(grad.double(), both.double()), [dtype] * 2)
    assert calls == ["gated", "gated_backward"]


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("vocabulary", [1, 64, 65, 300])
def test_softmax_of_a_tile(vocabulary, dtype, compiled, calls):
    logits, rows = numbers(vocabulary, 32, spread=20), torch.arange(32) % vocabulary
    logits[:, 3] = -torch.inf  # every token is banned
    logits[0, 5:7] = -torch.inf
    powers, exact = torch.empty_like(logits, dtype=dtype), torch.empty_like(logits, dtype=torch.float64)
    ours = kernels.tile_softmax(logits, rows, 0.7, powers)
    expected = kernels.tile_softmax(logits.double(), rows, 0.7, exact)
    banned = expected[0] == torch.finfo(torch.float64).min
    assert banned.tolist() == [column == 3 or (vocabulary == 1 and column in (5, 6)) for column in range(32)]
    for got, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(got.double()[~banned], other[~banned], rtol=1e-5, atol=1e-5)
    assert (ours[0][banned] == torch.finfo(torch.float32).min).all()
    assert (ours[1][banned] == 0).all()
    torch.testing.assert_close(powers.double(), exact, rtol=2 * ROUNDING[dtype] + 2e-5, atol=1e-30)
    assert (powers[logits == -torch.inf] == 0).all()
    without = kernels.tile_softmax(logits, rows, 0.7, None)
    assert all(torch.equal(one, other) for one, other in zip(without, ours, strict=True))
    assert calls == ["peaks", "powers"] * 2


def test_what_is_not_a_number_stays_so(compiled):
    logits = numbers(70, 16)
    logits[66, 2] = torch.nan
    total = kernels.tile_softmax(logits, torch.zeros(16, dtype=torch.long), 1.0, None)[1]
    assert total.isnan().tolist() == [column == 2 for column in range(16)]


@needs_bfloat16
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("vocabulary", "rows", "size"), [(1, 16, 16), (8, 32, 48), (77, 48, 256)])
def test_products_round_their_factors_alone(vocabulary, rows, size, dtype, compiled):
    weight, x = numbers(vocabulary, size).to(dtype), numbers(rows, size)
    assert native_kernels.can_multiply(weight, x)
    result = native_kernels.rounded_product(weight, x)
    exact = weight.bfloat16().double() @ x.bfloat16().double().T
    torch.testing.assert_close(result.double(), exact, rtol=0, atol=2e-6 * size**0.5)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("room", [0, 10**9])  # of exponentials that are kept for the backward pass
def test_logprobs_and_their_gradients_are_those_of_float64(room, dtype, compiled, calls, monkeypatch):
    monkeypatch.setattr(logprobs, "TILE", 48)
    monkeypatch.setattr(logprobs, "ROWS", 32)
    monkeypatch.setattr(logprobs, "KEPT_ELEMENTS", room)
    layer = torch.nn.Linear(64, 150)
    policy = torch.nn.Module()
    policy.config = type("Config", (), {"vocab_size": 150})()
    policy.get_output_embeddings = lambda: layer
    hidden, targets = numbers(37, 64).requires_grad_(), torch.arange(37) * 4
    upstream = numbers(37)

    def results(layer, hidden, dtype):
        own = logprobs.token_logprobs(policy, hidden, targets, 0.7, gradient_dtype=dtype)[0]
        return [own, *torch.autograd.grad(own, [hidden, layer.weight, layer.bias], upstream.to(own.dtype))]

    ours = results(layer, hidden, dtype)
    assert "powers" in calls
    assert ("rounded_product" in calls) == (dtype == torch.bfloat16)
    calls.clear()
    layer.double()
    exact = results(layer, hidden.detach().double().requires_grad_(), torch.float64)
    assert calls == []
    for got, expected in zip(ours, exact, strict=True):
        near = 1e-5 if dtype == torch.float32 else 1e-2
        assert (got.double() - expected).norm() <= near * expected.norm()


@pytest.mark.parametrize(
    "tensor",
    [
        pytest.param(lambda: numbers(4, 32).double(), id="float64"),
        pytest.param(lambda: numbers(4, 18), id="not of sixteens"),
        pytest.param(lambda: numbers(32, 32).T, id="with gaps"),
        pytest.param(lambda: numbers(4, 32).to("meta"), id="elsewhere"),
    ],
)
def test_what_the_code_cannot_run_is_left_to_torch(tensor, compiled, calls):
    plain = numbers(4, 32)
    assert native_kernels.can_run(torch.float32, factors=[plain], others=[plain])
    assert not native_kernels.can_run(torch.float32, factors=[plain, tensor()])
    assert not native_kernels.can_run(torch.float32, others=[tensor(), plain])
    x, weight = tensor(), torch.ones(1).to(tensor())
    assert kernels.rms_norm(x, weight, 1e-6, x.dtype)[0].shape == x.shape
    assert kernels.gated(x).shape == (len(x), x.shape[1] // 2)
    assert calls == []


def test_gates_are_left_to_torch_if_one_of_both_does_not_come_in_sixteens(compiled, calls):
    both, grad = numbers(4, 48), numbers(4, 24)
    assert native_kernels.can_run(torch.float32, factors=[both])
    assert torch.equal(kernels.gated(both), torch.nn.functional.silu(both[:, :24]) * both[:, 24:])
    assert kernels.gated_backward(grad, both)[0].shape == both.shape
    assert calls == []


def test_precisions_are_not_mixed_up(compiled):
    plain, rounded = numbers(4, 32), numbers(4, 32).bfloat16()
    assert not native_kernels.can_run(torch.float32, factors=[rounded])
    assert not native_kernels.can_run(torch.bfloat16, factors=[plain])
    assert not native_kernels.can_run(torch.bfloat16, factors=[rounded], others=[rounded])
    assert not native_kernels.can_run(torch.float16, factors=[plain.half()])
    assert not native_kernels.can_multiply(plain, numbers(5, 32))  # rows of x come in sixteens
    assert not native_kernels.can_multiply(plain, numbers(16, 32).double())


def test_bfloat16_is_left_to_torch_where_the_processor_does_not_multiply_it(compiled, monkeypatch):
    class Library:
        def multiplies_bfloat16(self):
            return False

    monkeypatch.setattr(native_kernels, "_library", Library)
    plain, rounded = numbers(16, 32), numbers(16, 32).bfloat16()
    assert native_kernels.can_run(torch.float32, factors=[plain])
    assert not native_kernels.can_run(torch.bfloat16, factors=[rounded])
    assert not native_kernels.can_multiply(plain, plain)


def test_nothing_is_compiled_unless_it_is_wanted(calls):
    kernels.gated(numbers(4, 32))
    kernels.tile_softmax(numbers(4, 32), torch.zeros(32, dtype=torch.long), 1.0, None)
    assert calls == []


def test_a_compiler_that_fails_costs_speed_alone(failing_compiler, caplog):
    both = numbers(4, 32)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(kernels.gated(both), torch.nn.functional.silu(both[:, :16]) * both[:, 16:])
        kernels.gated(both)
    assert ["unrecognised option -fopenmp" in record.message for record in caplog.records] == [True]
