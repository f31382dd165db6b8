"""Gradients of tiles that are kept for the backward pass, made again in it, or some of both: all the same."""

import pytest
import torch
from ppo_helpers import exact, tiny

from rlhf.policies import logprobs as module
from rlhf.policies.logprobs import token_logprobs

N, V = 13, 8  # with 3 tokens a tile the last one has 2


def gradients(policy, monkeypatch, tile, rows, kept):
    monkeypatch.setattr(module, "TILE", tile)
    monkeypatch.setattr(module, "ROWS", rows)
    monkeypatch.setattr(module, "KEPT_ELEMENTS", kept)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(N, 16, generator=generator, dtype=torch.float64).requires_grad_()
    targets, factors = torch.randint(V, (N,), generator=generator), torch.randn(N, generator=generator).double()
    weight = policy.get_output_embeddings().weight
    return torch.autograd.grad(factors @ token_logprobs(policy, hidden, targets, 0.7)[0], [hidden, weight])


@pytest.mark.parametrize("rows", [N, 7])
@pytest.mark.parametrize("kept", [0, 3 * N - 1, 3 * N, 6 * N, 8 * N - 1, 8 * N, 99 * N])
def test_what_is_kept_for_the_backward_pass_changes_no_gradient(monkeypatch, kept, rows):
    policy = exact(tiny())
    expected = gradients(policy, monkeypatch, 10**6, 10**6, 0)
    for got, wanted in zip(gradients(policy, monkeypatch, 3, rows, kept), expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("tile", "rows"), [(1, 1), (3, 5), (5, N), (99, 99)])
def test_scoring_without_gradients_gives_the_plain_values_in_any_tiles(monkeypatch, tile, rows):
    monkeypatch.setattr(module, "TILE", tile)
    monkeypatch.setattr(module, "ROWS", rows)
    policy, generator = exact(tiny()), torch.Generator().manual_seed(1)
    hidden = torch.randn(N, 16, generator=generator, dtype=torch.float64)
    targets = torch.randint(V, (N,), generator=generator)
    with torch.no_grad():
        got, _ = token_logprobs(policy, hidden, targets, 0.7)
        plain = (policy.get_output_embeddings()(hidden) / 0.7).log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    torch.testing.assert_close(got, plain, atol=1e-12, rtol=0)
