"""The sampler against a literal loop without cache or batch, its ways to stop, and its distribution."""

import math

import numpy as np
import pytest
import torch
from ppo_helpers import exact, tiny

from rlhf.config.ppo import RolloutConfig
from rlhf.generation.generator import Request
from rlhf.generation.noise import response_key, uniforms
from rlhf.generation.sampler import Sampler, draw, truncate
from rlhf.launch.runtime import Runtime

RUNTIME = Runtime(torch.device("cpu"), compile_kernels=False)
LETTERS = "_.^abcde"  # id -> text; 1 is EOS


def decode(ids):
    return "".join(LETTERS[i] for i in ids)


def requests(count=20, *, max_tokens=14, min_tokens=0):
    generator = torch.Generator().manual_seed(4)
    lengths = torch.randint(1, 9, (count,), generator=generator).tolist()
    return [
        Request(torch.randint(3, 8, (length,), generator=generator).tolist(), key, max_tokens - key % 5, min_tokens)
        for key, length in enumerate(lengths)
    ]


def sample(policy, asked, *, stop_token_ids=(1,), **options):
    return Sampler(policy, RolloutConfig(**options), stop_token_ids, decode, runtime=RUNTIME)(asked)


def literal(policy, request, *, temperature=1.0, stops=(1,), stop_string=None):
    """One response, one full forward pass a token; the first token whose cumulative probability exceeds u."""
    ids, logprobs, reason = list(request.prompt_ids), [], "length"
    for u in uniforms(request.key, request.max_tokens):
        with torch.no_grad():
            logits = policy(torch.tensor([ids])).logits[0, -1].double() / temperature
        if len(ids) - len(request.prompt_ids) < request.min_tokens:
            logits[list(stops)] = -math.inf
        probabilities = logits.softmax(-1).tolist()
        total, token = 0.0, -1
        while total <= u:
            token += 1
            total += probabilities[token]
        ids.append(token)
        logprobs.append(math.log(probabilities[token]))
        if token in stops:
            reason = "eos"
            break
        if stop_string is not None and stop_string in decode(ids[len(request.prompt_ids) :]):
            reason = "stop_string"
            break
    return ids[len(request.prompt_ids) :], logprobs, reason


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_responses_are_those_of_the_literal_loop(family, temperature):
    policy, asked = exact(tiny(family)).eval(), requests(min_tokens=2)
    reasons = set()
    for result, request in zip(sample(policy, asked, temperature=temperature, batch_size=4), asked, strict=True):
        ids, logprobs, reason = literal(policy, request, temperature=temperature)
        assert (result.token_ids, result.stop_reason) == (ids, reason)
        assert result.logprobs == pytest.approx(logprobs, abs=1e-12)
        reasons.add(reason)
    assert reasons == {"eos", "length"}


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_batch_size_and_order_change_no_text(family):
    policy, asked = tiny(family).eval(), requests(40)
    expected = sample(policy, asked, batch_size=1)
    assert len({len(result.token_ids) for result in expected}) > 4
    for batch_size in (7, 64):
        for order in (range(40), range(39, -1, -1)):
            got = sample(policy, [asked[i] for i in order], batch_size=batch_size)
            for i, result in zip(order, got, strict=True):
                assert result.token_ids == expected[i].token_ids
                assert result.stop_reason == expected[i].stop_reason
                assert result.logprobs == pytest.approx(expected[i].logprobs, abs=1e-5)


def test_free_rows_are_refilled_at_once():
    policy, shapes = tiny(vocab_size=8).eval(), []
    policy.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    with torch.no_grad():
        policy.lm_head.weight[1] = 0  # no state makes EOS likely, and min_tokens bans it
    asked = [Request([3] * 9, 0, 8, 8)] + [Request([4] * 5, key, 2, 2) for key in range(1, 6)]
    results = sample(policy, asked, batch_size=2)
    assert [len(result.token_ids) for result in results] == [8, 2, 2, 2, 2, 2]
    prompts = [shape for shape in shapes if shape[1] > 1]
    steps = [shape for shape in shapes if shape[1] == 1]
    assert prompts == [(2, 9), (1, 5), (1, 5), (1, 5), (1, 5)]
    assert len(steps) == 7  # what the longest response takes: the others run beside it
    assert max(rows for rows, _ in shapes) == 2


def eos_lover(token=1):
    """Says `token` whatever comes before: its row of the output layer is the (constant) final state."""
    policy = tiny(layers=1).double()
    policy.model.norm.weight.data.zero_()
    policy.lm_head.weight.data.zero_()
    policy.lm_head = torch.nn.Linear(16, 8, dtype=torch.float64)
    policy.lm_head.weight.data.zero_()
    policy.lm_head.bias.data = torch.where(torch.arange(8) == token, 50.0, 0.0).double()
    return policy.eval()


def test_a_response_may_stop_at_its_first_token():
    for result in sample(eos_lover(), requests(3)):
        assert (result.token_ids, result.stop_reason) == ([1], "eos")
        assert result.logprobs == pytest.approx([-7 * math.exp(-50)], abs=1e-15)


def test_a_minimum_length_bans_the_stop_token_until_it_is_reached():
    for result in sample(eos_lover(), requests(12, min_tokens=3)):
        assert len(result.token_ids) == 4
        assert 1 not in result.token_ids[:3]
        assert (result.token_ids[3], result.stop_reason) == (1, "eos")
        assert result.logprobs[:3] == pytest.approx([-math.log(7)] * 3, abs=1e-12)  # the others' distribution


def test_several_stop_tokens_and_none():
    policy, asked = exact(tiny()).eval(), requests(12)
    for result, request in zip(sample(policy, asked, stop_token_ids=(1, 5)), asked, strict=True):
        assert result.token_ids == literal(policy, request, stops=(1, 5))[0]
    for result, request in zip(sample(policy, asked, stop_token_ids=()), asked, strict=True):
        assert (len(result.token_ids), result.stop_reason) == (request.max_tokens, "length")


def test_stop_strings_end_a_response_where_they_are_complete():
    policy, asked, reasons = exact(tiny()).eval(), requests(40), []
    for result, request in zip(sample(policy, asked, stop_strings=["dd", "ae"]), asked, strict=True):
        ids, _, _ = literal(policy, request)
        text = decode(ids)
        ends = [text.index(stop) + 2 for stop in ("dd", "ae") if stop in text]
        assert decode(result.token_ids) == text[: min(ends, default=len(text))]
        assert (result.stop_reason == "stop_string") is bool(ends)
        reasons.append(result.stop_reason)
    assert {"stop_string", "eos"} <= set(reasons)
    with pytest.raises(ValueError, match="stop_strings need decode"):
        Sampler(policy, RolloutConfig(stop_strings=["b"]), (1,), runtime=RUNTIME)


@pytest.mark.parametrize("size", [1, 5, 256, 257, 1000])
def test_draws_invert_the_cumulative_distribution(size):
    """N evenly spread uniforms must fall on each token N p times, give or take one: far sharper than sampling."""
    logits = torch.randn(size, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2
    if size > 5:
        logits[[0, 3, size - 1]] = -math.inf
    uniform = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    tokens, logprobs = draw(logits.expand(4000, -1), uniform)
    probabilities = logits.softmax(-1)
    counts = torch.bincount(tokens, minlength=size)
    assert ((counts - 4000 * probabilities).abs() <= 1).all()
    assert (counts[probabilities == 0] == 0).all()
    assert (tokens.diff() >= 0).all()
    torch.testing.assert_close(logprobs, probabilities[tokens].log(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-53])
def test_draws_at_the_ends_are_possible_tokens(dtype, uniform):
    logits = torch.randn(50, 700, generator=torch.Generator().manual_seed(0), dtype=dtype)
    logits[:, :300] = -math.inf
    logits[:, 690:] = -math.inf
    tokens, logprobs = draw(logits, torch.full((50,), uniform, dtype=torch.float64))
    assert torch.isfinite(logprobs).all()
    assert (tokens == (300 if uniform == 0 else 689)).all()


def test_samples_follow_the_policys_distribution():
    policy = tiny(seed=3).eval()
    results = sample(policy, [Request([3, 4], response_key(0, 0, [3, 4], i), 1) for i in range(4000)], batch_size=500)
    counts = np.bincount([result.token_ids[0] for result in results], minlength=8)
    with torch.no_grad():
        expected = policy(torch.tensor([[3, 4]])).logits[0, -1].softmax(-1).numpy() * 4000
    assert ((counts - expected) ** 2 / expected).sum() < 24.3  # chi-squared, 7 degrees: exceeded once in 1000 seeds
    assert expected.min() > 1


def test_top_k_keeps_the_k_likeliest_and_renormalises():
    policy = exact(tiny()).eval()
    for result, request in zip(sample(policy, requests(20), top_k=2), requests(20), strict=True):
        ids = list(request.prompt_ids)
        for token, logprob in zip(result.token_ids, result.logprobs, strict=True):
            with torch.no_grad():
                best = policy(torch.tensor([ids])).logits[0, -1].log_softmax(-1).topk(2)
            assert token in best.indices
            chosen = best.values[best.indices == token]
            assert logprob == pytest.approx(float(chosen - best.values.logsumexp(-1)), abs=1e-12)
            ids.append(token)


def test_top_p_keeps_the_fewest_tokens_that_reach_the_mass():
    probabilities = torch.tensor([[0.1, 0.4, 0.2, 0.3], [0.05, 0.05, 0.85, 0.05]])
    kept = truncate(probabilities.log(), None, 0.65) > -math.inf
    assert kept.tolist() == [[False, True, False, True], [False, False, True, False]]
    assert torch.equal(truncate(probabilities.log(), None, 1.0), probabilities.log())
    assert torch.equal(truncate(probabilities.log(), 9, 1.0), probabilities.log())


def test_noise_is_a_function_of_its_name():
    assert np.array_equal(uniforms(5, 10)[:4], uniforms(5, 4))
    assert not np.array_equal(uniforms(5, 4), uniforms(6, 4))
    names = [(0, 0, (3, 4), 0, 0), (1, 0, (3, 4), 0, 0), (0, 1, (3, 4), 0, 0), (0, 0, (4, 3), 0, 0),
             (0, 0, (3, 4), 1, 0), (0, 0, (3, 4), 0, 1), (0, 0, (3,), 0, 0), (0, 0, (3, 4, 0), 0, 0)]  # fmt: skip
    assert len({response_key(*name) for name in names}) == len(names)
    assert response_key(*names[0]) == response_key(0, 0, [3, 4], 0)
