"""Attention by matrix products against torch's own, in value and gradient, and what it must leave alone."""

import warnings

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

from rlhf.cpu import attention


def heads(rows: int, query: int, keys: int, length: int, *, seed: int = 0) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((rows, query, length, 8), (rows, keys, length, 8), (rows, keys, length, 8))
    return tuple(torch.randn(shape, generator=generator).requires_grad_() for shape in shapes)


def gradients(output: torch.Tensor, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad((output * weights).sum(), inputs)


def right_padding(rows: int, length: int, real: list[int]) -> torch.Tensor:
    causal = torch.ones(length, length, dtype=torch.bool).tril()[None, None].repeat(rows, 1, 1, 1)
    for row, count in enumerate(real):
        causal[row, :, :, count:] = False
    return causal


@pytest.mark.parametrize(("query", "keys"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("padded", [False, True])
def test_values_and_gradients_are_those_of_torch(query: int, keys: int, padded: bool) -> None:
    q, k, v = heads(2, query, keys, 7)
    mask = right_padding(2, 7, [7, 4]) if padded else None
    ours = attention.matrix_attention(q, k, v, mask, torch.float32)
    plain = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)
    torch.testing.assert_close(ours, plain, rtol=0, atol=1e-6)
    for one, other in zip(gradients(ours, (q, k, v)), gradients(plain, (q, k, v)), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_an_additive_mask_means_the_same_as_a_boolean_one() -> None:
    q, k, v = heads(2, 4, 2, 6)
    mask = right_padding(2, 6, [6, 3])
    additive = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
    one, other = (attention.matrix_attention(q, k, v, m, torch.float32) for m in (mask, additive))
    assert torch.equal(one, other)


def test_bfloat16_products_stay_within_its_rounding() -> None:
    q, k, v = heads(3, 6, 2, 20)
    exact = attention.matrix_attention(q, k, v, None, torch.float32)
    rounded = attention.matrix_attention(q, k, v, None, torch.bfloat16)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0, atol=3e-2)
    for one, other in zip(gradients(rounded.float(), (q, k, v)), gradients(exact, (q, k, v)), strict=True):
        assert (one - other).norm() / other.norm() < 1e-2


def llama(length: int = 600, **options: int) -> LlamaModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaModel(LlamaConfig(vocab_size=32, max_position_embeddings=length, **{**sizes, **options})).eval()


@pytest.mark.parametrize("length", [12, 200])  # below and above where torch takes over
@pytest.mark.parametrize("autocast", [False, True])
def test_a_model_answers_as_before(length: int, autocast: bool) -> None:
    model = llama(num_key_value_heads=2)
    ids = torch.randint(0, 32, (2, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0

    def run() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return model(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()].float()

    before = run()
    attention.prefer_fast_attention(model)
    assert model.config._attn_implementation == attention.NAME
    torch.testing.assert_close(run(), before, rtol=0, atol=5e-2 if autocast else 1e-5)


def test_under_autocast_no_attention_runs_in_torchs_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    # Rotary embeddings leave queries in float32 under autocast, which would make torch cast them back.
    seen = []
    original = attention.sdpa_attention_forward

    def spy(module: object, query: torch.Tensor, *args: object, **options: object) -> object:
        seen.append((query.dtype, torch.is_autocast_enabled("cpu")))
        return original(module, query, *args, **options)

    monkeypatch.setattr(attention, "sdpa_attention_forward", spy)
    model = llama()
    attention.prefer_fast_attention(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(input_ids=torch.zeros(1, 520, dtype=torch.long))
    assert seen == [(torch.float32, False)] * 2


def test_a_model_that_looks_both_ways_keeps_doing_so() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = BertModel(BertConfig(vocab_size=32, **sizes)).eval()
    ids = torch.randint(0, 32, (1, 9))
    before = model(input_ids=ids).last_hidden_state
    attention.prefer_fast_attention(model)
    torch.testing.assert_close(model(input_ids=ids).last_hidden_state, before, rtol=0, atol=1e-6)


def test_another_attention_that_was_chosen_stays() -> None:
    model = llama()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.set_attn_implementation("eager")
    attention.prefer_fast_attention(model)
    assert model.config._attn_implementation == "eager"
