"""Log-probabilities and entropies, made in parts, against plain formulas: values and gradients, every output layer."""

import math
from types import SimpleNamespace

import pytest
import torch
from ppo_helpers import exact, tiny, with_lora
from torch import nn

from rlhf.policies import logprobs as module
from rlhf.policies.head import is_plain
from rlhf.policies.logprobs import logprobs_and_entropy, token_logprobs

N, V = 13, 8
FAMILIES = ["llama", "gpt2", "opt"]


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    monkeypatch.setattr(module, "TILE", 3)  # the vocabulary takes three tiles, 13 tokens take three chunks of rows,
    monkeypatch.setattr(module, "ROWS", 5)  # the last ones are shorter


def with_bias(policy):
    layer = nn.Linear(16, V, dtype=torch.float64)
    layer.weight = policy.get_output_embeddings().weight
    nn.init.normal_(layer.bias)
    policy.set_output_embeddings(layer)
    return policy


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, 16, generator=generator, dtype=torch.float64)
    return hidden, torch.randint(V, (N,), generator=generator), torch.randn(2, N, generator=generator).double()


def plain(hidden, layer, targets, temperature):
    """Softmax written out."""
    logits = hidden @ layer.weight.T
    if layer.bias is not None:
        logits = logits + layer.bias
    powers = (logits / temperature).exp()
    probabilities = powers / powers.sum(-1, keepdim=True)
    return probabilities[torch.arange(N), targets].log(), -(probabilities * probabilities.log()).sum(-1)


def results(policy, compute, entropy_weight):
    """Values, and gradients of a weighted sum of them, with respect to hidden states and output layer."""
    policy.zero_grad()
    hidden, targets, factors = inputs()
    hidden.requires_grad_()
    logprobs, entropies = compute(hidden, targets)
    (factors[0] @ logprobs + entropy_weight * factors[1] @ entropies).backward()
    layer = policy.get_output_embeddings()
    own = {"weight": layer.weight, "bias": layer.bias}
    grads = {name: p.grad.clone() for name, p in own.items() if p is not None}
    return {"logprobs": logprobs.detach(), "entropies": entropies.detach(), "hidden": hidden.grad, **grads}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("entropy", [False, True])
def test_values_and_gradients_are_the_plain_ones(family, bias, temperature, entropy):
    policy = exact(tiny(family))
    if bias:
        policy = with_bias(policy)
    layer = policy.get_output_embeddings()
    assert is_plain(policy)
    assert (layer.bias is not None) is bias
    got = results(policy, lambda h, t: token_logprobs(policy, h, t, temperature, entropy=entropy), float(entropy))
    expected = results(policy, lambda h, t: plain(h, layer, t, temperature), float(entropy))
    assert got.keys() == expected.keys()
    if not entropy:
        assert (got.pop("entropies") == 0).all()
    for name, value in got.items():
        torch.testing.assert_close(value, expected[name], atol=1e-12, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("tile", "rows"), [(1, 13), (8, 1), (5, 12), (10**6, 10**6)])
@pytest.mark.parametrize("entropy", [False, True])
def test_tiles_and_chunks_of_any_size_change_nothing(tile, rows, entropy, monkeypatch):
    policy = with_bias(exact(tiny()))

    def compute(hidden, targets):
        return token_logprobs(policy, hidden, targets, 0.7, entropy=entropy)

    expected = results(policy, compute, 1.0)
    monkeypatch.setattr(module, "TILE", tile)
    monkeypatch.setattr(module, "ROWS", rows)
    for name, value in results(policy, compute, 1.0).items():
        torch.testing.assert_close(value, expected[name], atol=1e-13, rtol=0)


def test_autograd_agrees_with_finite_differences():
    policy = with_bias(exact(tiny()))
    layer = policy.get_output_embeddings()
    hidden, targets, _ = inputs()

    def compute(hidden, weight, bias):
        return module._LinearLogprobs.apply(hidden, weight, bias, targets, 0.7, torch.float64, 10**6, None)

    given = [tensor.detach().clone().requires_grad_() for tensor in (hidden, layer.weight, layer.bias)]
    assert torch.autograd.gradcheck(compute, given, atol=1e-6)


def test_a_bfloat16_backward_pass_changes_no_value_and_rounds_gradients():
    policy = tiny()
    hidden, targets, factors = inputs()
    hidden, factors = hidden.float().requires_grad_(), factors[0].float()
    weight = policy.get_output_embeddings().weight
    exact_values, _ = token_logprobs(policy, hidden, targets, 0.7)
    rounded_values, _ = token_logprobs(policy, hidden, targets, 0.7, gradient_dtype=torch.bfloat16)
    assert torch.equal(exact_values, rounded_values)
    expected, got = (torch.autograd.grad(factors @ v, (hidden, weight)) for v in (exact_values, rounded_values))
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == torch.float32
        assert 0 < (one - other).norm() / other.norm() < 1e-2


@pytest.mark.parametrize("others", [-30.0, -300.0])
def test_a_nearly_certain_token_keeps_its_gradient_in_bfloat16(others):
    """1 - p would be 0 if p were rounded first; p of a whole tile may be 0."""
    policy = tiny()
    weight = policy.get_output_embeddings().weight
    hidden = torch.zeros(1, 16)
    hidden[0, 0] = 1.0
    with torch.no_grad():
        weight.zero_()
        weight[:, 0] = torch.tensor([0.0, -6.0, -6.0] + [others] * 5)
    hidden.requires_grad_()
    logprobs, _ = token_logprobs(policy, hidden, torch.tensor([0]), 1.0, gradient_dtype=torch.bfloat16)
    (gradient,) = torch.autograd.grad(logprobs.sum(), weight)
    certain = 1 / (1 + 2 * math.exp(-6.0) + 5 * math.exp(others))
    assert gradient[0, 0].item() == pytest.approx(1 - certain, rel=1e-4)
    assert gradient[1:3, 0].tolist() == pytest.approx([-math.exp(-6.0) * certain] * 2, rel=1e-2)


def test_a_tile_whose_tokens_are_all_banned_has_no_part():
    layer = nn.Linear(16, V, dtype=torch.float64)
    policy = exact(tiny())
    policy.set_output_embeddings(layer)
    with torch.no_grad():
        layer.bias[3:6] = -math.inf
    hidden, _, _ = inputs()
    targets = torch.arange(N) % 3
    hidden.requires_grad_()
    got, _ = token_logprobs(policy, hidden, targets, 0.7)
    expected = plain(hidden, layer, targets, 0.7)[0]
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
    grads = [torch.autograd.grad(values.sum(), [hidden, layer.weight]) for values in (got, expected)]
    torch.testing.assert_close(*grads, atol=1e-12, rtol=0)


def test_a_frozen_output_layer_gets_no_gradient_and_hidden_states_do():
    policy = exact(tiny()).requires_grad_(False)
    hidden, targets, _ = inputs()
    hidden.requires_grad_()
    token_logprobs(policy, hidden, targets, 1.0)[0].sum().backward()
    assert policy.get_output_embeddings().weight.grad is None
    assert hidden.grad.abs().max() > 0


@pytest.mark.parametrize("entropy", [False, True])
def test_adapters_on_the_output_layer_are_called_as_a_module(entropy):
    policy = with_lora(exact(tiny()), target_modules=["lm_head"]).double()
    nn.init.normal_(policy.base_model.model.lm_head.lora_B["default"].weight)
    assert not is_plain(policy)
    layer = policy.base_model.model.lm_head
    weight = layer.base_layer.weight + layer.get_delta_weight("default")
    hidden, targets, factors = inputs()
    own = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
    sums = []
    for outputs in (
        token_logprobs(policy, hidden, targets, 0.7, entropy=entropy),
        plain(hidden, SimpleNamespace(weight=weight, bias=None), targets, 0.7),
    ):
        total = factors[0] @ outputs[0] + (factors[1] @ outputs[1] if entropy else 0)
        sums.append((outputs[0].detach(), *torch.autograd.grad(total, own)))
    for got, expected in zip(*sums, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("key", ["final_logit_softcapping", "logit_scale", "logits_scaling"])
def test_what_a_family_does_to_its_logits_is_done(key):
    policy = exact(tiny())
    setattr(policy.config, key, 1.5)
    hidden, targets, _ = inputs()
    logits = hidden @ policy.lm_head.weight.T
    changed = {
        "final_logit_softcapping": 1.5 * torch.tanh(logits / 1.5),
        "logit_scale": logits * 1.5,
        "logits_scaling": logits / 1.5,
    }[key]
    expected = (changed / 0.7).log_softmax(-1)[torch.arange(N), targets]
    got, _ = token_logprobs(policy, hidden, targets, 0.7)
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


def test_low_precision_hidden_states_are_reduced_in_float32():
    policy = tiny()
    hidden, targets, _ = inputs()
    low = hidden.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, _ = token_logprobs(policy, low, targets, 1.0)
    assert got.dtype == torch.float32
    expected = (low.double() @ policy.lm_head.weight.double().T).log_softmax(-1)[torch.arange(N), targets]
    torch.testing.assert_close(got.double(), expected, atol=1e-5, rtol=0)


def test_a_banned_token_costs_no_entropy():
    logits = torch.tensor([[0.0, -math.inf, math.log(3.0)]], dtype=torch.float64)
    logprobs, entropies = logprobs_and_entropy(logits, torch.tensor([2]))
    assert logprobs.item() == pytest.approx(math.log(0.75), abs=1e-15)
    assert entropies.item() == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), abs=1e-15)
