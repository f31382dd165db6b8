"""Summed log-probabilities against a whole forward pass with log-softmax, one episode at a time."""

import numpy as np
import pytest
import torch
from ppo_helpers import runtime
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf.episodes.episode import Episode
from rlhf.evaluation.likelihood import response_logprobs
from rlhf.packing.packed import PackedRows
from rlhf.policies.decoder_only import DecoderOnly
from rlhf.policies.head import hidden_states

CPU = torch.device("cpu")


def asked(model):
    return DecoderOnly(model, runtime())


def tiny_model(dtype=torch.float32):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=23, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).to(dtype)
    for parameter in model.parameters():
        parameter.data.mul_(4.0)  # far from uniform, so that a wrong position shows
    return model.eval()


def episode(mask):
    ids = np.random.default_rng(len(mask)).integers(23, size=len(mask)).tolist()
    return Episode(
        prompt="p",
        token_ids=ids,
        response_mask=mask,
        sampled_logprobs=[0.0] * len(mask),
        rewards=[0.0] * len(mask),
        responses=["r"],
        messages=[],
        stop_reason="eos",
        terminated=True,
        truncated=False,
    )


EPISODES = [
    episode([False] * 3 + [True] * 4),
    episode([False] * 5 + [True]),
    episode([False, True, True, False, False, True, True, True, False, True]),  # several turns
    episode([False] * 2 + [True] * 9),
]


def by_hand(model, episode, temperature):
    logits = model(input_ids=torch.tensor([episode.token_ids])).logits[0].double() / temperature
    logprobs = logits.log_softmax(-1)
    return sum(
        logprobs[t - 1, token].item()
        for t, (token, own) in enumerate(zip(episode.token_ids, episode.response_mask, strict=True))
        if own
    )


@pytest.mark.parametrize("temperatures", [(1.0,), (0.7, 1.0)])
@pytest.mark.parametrize("microbatch_tokens", [1, 14, 10_000])
def test_sums_equal_a_literal_loop(temperatures, microbatch_tokens):
    model = tiny_model()
    got = response_logprobs(asked(model), EPISODES, CPU, temperatures=temperatures, microbatch_tokens=microbatch_tokens)
    with torch.no_grad():
        expected = [[by_hand(model, e, temperature) for e in EPISODES] for temperature in temperatures]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_equal_weights_give_equal_numbers_to_the_last_bit():
    one = response_logprobs(asked(tiny_model()), EPISODES, CPU, temperatures=[1.0], microbatch_tokens=20)
    other = response_logprobs(asked(tiny_model()), EPISODES, CPU, temperatures=[1.0], microbatch_tokens=20)
    np.testing.assert_array_equal(one, other)


def test_bfloat16_weights_keep_logits_in_float32():
    model = tiny_model(torch.bfloat16)
    got = response_logprobs(asked(model), EPISODES[:1], CPU, temperatures=[1.0], microbatch_tokens=1000)
    with torch.no_grad():
        ids = torch.tensor(EPISODES[0].token_ids)
        hidden = hidden_states(model, PackedRows.from_rows([ids.tolist()]), torch.arange(len(ids)))
        logprobs = (hidden.float() @ model.lm_head.weight.float().T).double().log_softmax(-1)
    expected = sum(logprobs[t - 1, EPISODES[0].token_ids[t]].item() for t in range(3, 7))
    assert got[0, 0] == pytest.approx(expected, abs=1e-4)
