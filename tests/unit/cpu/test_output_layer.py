"""The compiled softmax over tiles of the vocabulary against the plain one in float64, and what it refuses."""

import pytest
import torch
from cpu_helpers import BFLOAT16, COMPILED, llama, near, numbers

from rlhf.cpu import output_layer
from rlhf.policies import logprobs
from rlhf.policies.backend import backend_for

PRECISIONS = [torch.float32, BFLOAT16]


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("vocabulary", [1, 64, 65, 300])
def test_softmax_of_a_tile(vocabulary, dtype):
    logits = numbers(vocabulary, 32, spread=20)
    logits[:, 3] = -torch.inf  # every token is banned
    logits[0, 5:7] = -torch.inf
    powers, exact = torch.empty_like(logits, dtype=dtype), torch.empty_like(logits, dtype=torch.float64)
    ours = output_layer.tile_softmax(logits, 0.7, powers)
    expected = logprobs.tile_sums(logits.double(), 0.7, exact)
    banned = expected[0] == torch.finfo(torch.float64).min
    assert banned.tolist() == [column == 3 or (vocabulary == 1 and column in (5, 6)) for column in range(32)]
    for got, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(got.double()[~banned], other[~banned], rtol=1e-5, atol=1e-5)
    assert (ours[0][banned] == torch.finfo(torch.float32).min).all()
    assert (ours[1][banned] == 0).all()
    torch.testing.assert_close(powers.double(), exact, rtol=2**-7 if dtype == torch.bfloat16 else 2e-5, atol=1e-30)
    assert (powers[logits == -torch.inf] == 0).all()
    without = output_layer.tile_softmax(logits, 0.7, None)
    assert all(torch.equal(one, other) for one, other in zip(without, ours, strict=True))


def test_what_is_not_a_number_stays_so():
    logits = numbers(70, 16)
    logits[66, 2] = torch.nan
    total = output_layer.tile_softmax(logits, 1.0, None)[1]
    assert total.isnan().tolist() == [column == 2 for column in range(16)]


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(("vocabulary", "rows", "size"), [(1, 16, 16), (8, 32, 48), (77, 48, 256)])
def test_products_round_their_factors_alone(vocabulary, rows, size, dtype, monkeypatch):
    """Of weights in float32 on every processor, if slowly: where it does not multiply bfloat16, the code does."""
    monkeypatch.setattr(output_layer, "multiplies_bfloat16", lambda: True)
    weight, x = numbers(vocabulary, size).to(dtype), numbers(rows, size)
    exact = weight.bfloat16().double() @ x.bfloat16().double().T
    torch.testing.assert_close(output_layer.rounded_product(weight, x).double(), exact, rtol=0, atol=2e-6 * size**0.5)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("room", [0, 10**9])  # of exponentials that are kept for the backward pass
def test_logprobs_and_their_gradients_are_those_of_float64(room, dtype, monkeypatch):
    monkeypatch.setattr(logprobs, "TILE", 48)
    monkeypatch.setattr(logprobs, "ROWS", 32)
    monkeypatch.setattr(logprobs, "KEPT_ELEMENTS", room)
    policy = llama(vocab_size=150)
    policy.lm_head = torch.nn.Linear(96, 150)
    backend, asked = backend_for(policy, COMPILED), []
    monkeypatch.setattr(backend, "tile_softmax", lambda *a: asked.append(1) or output_layer.tile_softmax(*a))
    hidden, targets, upstream = numbers(37, 96).requires_grad_(), torch.arange(37) * 4, numbers(37)

    def results(hidden, dtype, backend):
        own = logprobs.token_logprobs(policy, hidden, targets, 0.7, gradient_dtype=dtype, backend=backend)[0]
        layer = policy.lm_head
        return [own, *torch.autograd.grad(own, [hidden, layer.weight, layer.bias], upstream.to(own.dtype))]

    ours = results(hidden, dtype, backend)
    assert asked
    policy.double()
    exact = results(hidden.detach().double().requires_grad_(), torch.float64, None)
    for got, expected in zip(ours, exact, strict=True):
        near(got, expected, 1e-5 if dtype == torch.float32 else 1e-2)


@pytest.mark.parametrize(
    "logits",
    [
        pytest.param(lambda: numbers(4, 32).double(), id="float64"),
        pytest.param(lambda: numbers(4, 18), id="not of sixteens"),
        pytest.param(lambda: numbers(32, 32).T, id="with gaps"),
        pytest.param(lambda: numbers(4, 32).to("meta"), id="elsewhere"),
    ],
)
def test_what_the_code_cannot_run_is_refused(logits):
    assert output_layer.tile_softmax(numbers(4, 32), 1.0, None) is not None
    assert output_layer.tile_softmax(logits(), 1.0, None) is None


def test_bfloat16_is_refused_where_the_processor_does_not_multiply_it(monkeypatch):
    monkeypatch.setattr(output_layer, "multiplies_bfloat16", lambda: False)
    logits = numbers(4, 32)
    assert output_layer.tile_softmax(logits, 1.0, torch.empty_like(logits, dtype=torch.bfloat16)) is None
    assert output_layer.tile_softmax(logits, 1.0, torch.empty_like(logits, dtype=torch.float16)) is None
    assert output_layer.rounded_product(numbers(16, 32), numbers(16, 32)) is None
