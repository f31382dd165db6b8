"""Gradients of chunks that are kept for the backward pass, made again in it, or some of both: all the same."""

import pytest
import torch
from ppo_helpers import exact, tiny

from rlhf.ppo import logprobs as module
from rlhf.ppo.logprobs import token_logprobs

N, V = 13, 8  # with 5 tokens a chunk the last one has 3


def gradients(policy, monkeypatch, chunk_tokens, kept_tokens):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk_tokens * V)
    monkeypatch.setattr(module, "KEPT_ELEMENTS", kept_tokens * V)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(N, 16, generator=generator, dtype=torch.float64).requires_grad_()
    targets, factors = torch.randint(V, (N,), generator=generator), torch.randn(N, generator=generator).double()
    weight = policy.get_output_embeddings().weight
    return torch.autograd.grad(factors @ token_logprobs(policy, hidden, targets, 0.7)[0], [hidden, weight])


@pytest.mark.parametrize("kept_tokens", [0, 3, 5, 8, 10, 12, 13, 99])
def test_what_is_kept_for_the_backward_pass_changes_no_gradient(monkeypatch, kept_tokens):
    """With room for 3 or 8 tokens the last chunk would fit where the one before it did not."""
    policy = exact(tiny())
    expected = gradients(policy, monkeypatch, 10**6, 0)
    for got, wanted in zip(gradients(policy, monkeypatch, 5, kept_tokens), expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("chunk_tokens", [1, 5, 99])
def test_scoring_without_gradients_gives_the_plain_values_in_any_chunks(monkeypatch, chunk_tokens):
    monkeypatch.setattr(module, "CHUNK_ELEMENTS", chunk_tokens * V)
    policy, generator = exact(tiny()), torch.Generator().manual_seed(1)
    hidden = torch.randn(N, 16, generator=generator, dtype=torch.float64)
    targets = torch.randint(V, (N,), generator=generator)
    with torch.no_grad():
        got, _ = token_logprobs(policy, hidden, targets, 0.7)
        plain = (policy.get_output_embeddings()(hidden) / 0.7).log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    torch.testing.assert_close(got, plain, atol=1e-12, rtol=0)
