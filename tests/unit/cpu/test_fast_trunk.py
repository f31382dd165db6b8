"""The blocks by hand against transformers' own, in value and every gradient, and what must go through the modules."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from rlhf.cpu import attention, fast_trunk
from rlhf.cpu.decoding import Decoder
from rlhf.generation.cache import SlotCache
from rlhf.models.adapters import wrap
from rlhf.packing.packed import PackedRows
from rlhf.policies import head

SIZES = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64,
}  # fmt: skip
LENGTHS = torch.tensor([9, 4, 7])
LORA = {"r": 3, "lora_alpha": 6, "target_modules": "all-linear"}


def shaken(model: Any) -> Any:
    """Move every weight, so that no norm is 1, no bias and no adapter 0; in double precision."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.double().parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def llama(**options: Any) -> Any:
    torch.manual_seed(0)
    return shaken(LlamaForCausalLM(LlamaConfig(**{**SIZES, **options})))


def adapted(**options: Any) -> Any:
    torch.manual_seed(0)
    return shaken(wrap(LlamaForCausalLM(LlamaConfig(**SIZES)), LoraConfig(**{**LORA, **options})))


def qwen2() -> Any:
    return shaken(Qwen2ForCausalLM(Qwen2Config(**SIZES)))


def mistral(window: int | None = None) -> Any:
    return shaken(MistralForCausalLM(MistralConfig(**SIZES, sliding_window=window)))


def classifier() -> Any:
    return shaken(LlamaForSequenceClassification(LlamaConfig(**SIZES, num_labels=1)))


MODELS: dict[str, Callable[[], Any]] = {
    "llama": llama,
    "llama without shared keys": lambda: llama(num_key_value_heads=4),
    "llama with biases": lambda: llama(attention_bias=True, mlp_bias=True),
    "llama with scaled rotary embeddings": lambda: llama(
        rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    ),
    "qwen2": qwen2,
    "mistral": mistral,
    "classifier": classifier,
    "adapters": adapted,
    "adapters on some matrices": lambda: adapted(target_modules=["q_proj", "down_proj"], layers_to_transform=[1]),
}


def packed(*, shared: int = 0) -> PackedRows:
    """Three rows, of which the first tokens are the same; the first two share one more."""
    ids = torch.randint(0, 40, (3, 9), generator=torch.Generator().manual_seed(0))
    ids[:, :shared] = ids[0, :shared]
    ids[1, : shared + bool(shared)] = ids[0, : shared + bool(shared)]
    return PackedRows.from_padded(ids, LENGTHS)


def everything(rows: PackedRows) -> torch.Tensor:
    return torch.arange(len(rows.input_ids))


def by_modules(model: Any, rows: PackedRows) -> torch.Tensor:
    return rows.pack(head.trunk(model)(input_ids=rows.pad(rows.input_ids), use_cache=False).last_hidden_state)


def gradients(model: Any, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (hidden * weights).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.fixture(autouse=True)
def _exact_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers' norms compute in float32 whatever comes in; here they stay in double precision."""
    for name in ("llama.modeling_llama.LlamaRMSNorm", "qwen2.modeling_qwen2.Qwen2RMSNorm",
                 "mistral.modeling_mistral.MistralRMSNorm"):  # fmt: skip
        monkeypatch.setattr(f"transformers.models.{name}.forward", _double_norm)


def _double_norm(self: Any, hidden: torch.Tensor) -> torch.Tensor:
    return self.weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + self.variance_epsilon)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("longest", [160, 4])  # rows shorter and longer than matrix products are used for
@pytest.mark.parametrize("shared", [0, 2])
def test_values_and_gradients_are_those_of_the_modules(
    name: str, longest: int, shared: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(attention.LONGEST, torch.float64, longest)
    model, rows = MODELS[name](), packed(shared=shared)
    assert len(rows.repeats) == (5 if shared else 0)
    assert fast_trunk.can_run(head.trunk(model))
    read = torch.tensor([1, len(rows.input_ids) - 1, 4, 1, 6])  # of the others the last block needs keys and values
    ours, theirs = fast_trunk.run(head.trunk(model), rows, read), by_modules(model, rows)[read]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    own, plain = gradients(model, ours), gradients(model, theirs)
    assert own.keys() == plain.keys()
    for parameter, expected in plain.items():
        torch.testing.assert_close(own[parameter], expected, rtol=1e-9, atol=1e-11)


def test_switched_off_adapters_leave_the_plain_weights() -> None:
    model, rows = adapted(), packed()
    with model.disable_adapter():
        off = fast_trunk.run(head.trunk(model), rows, everything(rows))
        torch.testing.assert_close(off, by_modules(model, rows), rtol=0, atol=1e-12)
    assert (off - fast_trunk.run(head.trunk(model), rows, everything(rows))).abs().max() > 1e-3


def test_frozen_weights_get_no_gradient() -> None:
    model = llama()
    model.model.layers[0].requires_grad_(False)
    model.model.embed_tokens.requires_grad_(False)
    got = gradients(model, fast_trunk.run(model.model, packed(), everything(packed())))
    assert got
    assert not any("layers.0" in name or "embed" in name for name in got)


@pytest.mark.parametrize("lowered", [False, True])
def test_weights_beside_frozen_ones_learn_as_if_these_were_not(lowered: bool) -> None:
    found = []
    for frozen in ((), ("k_proj", "up_proj"), ("q_proj", "v_proj", "gate_proj")):
        model = llama().float() if lowered else llama()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.split(".")[-2] not in frozen)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=lowered):
            hidden = fast_trunk.run(model.model, packed(), everything(packed()))
        found.append(gradients(model, hidden))
    everyone, *some = found
    assert [len(everyone) - len(of_some) for of_some in some] == [4, 6]
    for of_some in some:
        for name, gradient in of_some.items():
            torch.testing.assert_close(gradient, everyone[name], rtol=1e-9, atol=1e-11)


def test_bfloat16_products_round_as_autocast_does() -> None:
    model, rows = llama().float(), packed()
    exact = fast_trunk.run(model.model, rows, everything(rows))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, theirs = fast_trunk.run(model.model, rows, everything(rows)), by_modules(model, rows)
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() < 1.5 * (theirs.float() - exact).norm()
    for one, other in zip(gradients(model, rounded).values(), gradients(model, exact).values(), strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() / other.norm() < 3e-2


def test_the_engine_takes_the_fast_way_and_no_other_for_a_llama(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    monkeypatch.setattr(type(model.model), "forward", None)  # calling it would be an error
    assert head.hidden_states(model, packed(), torch.tensor([3, 5])).shape == (2, 32)


def two_adapters() -> Any:
    model = adapted()
    model.add_adapter("other", LoraConfig(**LORA))
    model.base_model.set_adapter(["default", "other"])
    return model


def recomputing() -> Any:
    model = llama()
    model.model.gradient_checkpointing = True
    return model


def hooked() -> Any:
    model = llama()
    model.model.layers[1].register_forward_hook(lambda *_: None)
    return model


REFUSED: dict[str, Callable[[], Any]] = {
    "another family": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2)),
    "another activation": lambda: llama(hidden_act="gelu"),
    "a sliding window": lambda: mistral(window=4),
    "dropout": lambda: llama(attention_dropout=0.1),
    "dropout of adapters": lambda: adapted(lora_dropout=0.1),
    "weight-decomposed adapters": lambda: adapted(use_dora=True),
    "two adapters at once": two_adapters,
    "recomputed activations": recomputing,
    "a hook on a module": hooked,
}


@pytest.mark.parametrize("name", REFUSED)
def test_everything_else_goes_through_the_modules(name: str) -> None:
    model, rows = REFUSED[name]().double().train(), packed()
    assert not fast_trunk.can_run(head.trunk(model))
    torch.manual_seed(0)
    ours = head.hidden_states(model, rows, everything(rows))
    torch.manual_seed(0)
    assert torch.equal(ours, by_modules(model, rows))


def test_padding_never_reaches_beyond_the_positions_that_a_model_has() -> None:
    """20 tokens are 32 columns in the blocks computed by hand, but no more than 20 in a model with 20 positions."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=20)).double().eval()
    ids = torch.randint(0, 40, (2, 20))
    rows = PackedRows.from_padded(ids, torch.tensor([20, 3]))
    hidden = head.hidden_states(model, rows, rows.grid[0])
    torch.testing.assert_close(hidden, model.transformer(ids[:1]).last_hidden_state[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("even_from", [256, 4])  # 4: the tokens that are read get company
@pytest.mark.parametrize("count", [256, 257, 320])
def test_many_tokens_can_be_read_and_none_is_read_that_nobody_asked_for(
    count: int, even_from: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf.packing.packed.EVEN_FROM", even_from)
    monkeypatch.setattr(fast_trunk, "EVENED", {torch.float64})
    model, rows = llama(), packed()
    read = torch.arange(count) % len(rows.input_ids)
    ours, theirs = fast_trunk.run(model.model, rows, read), by_modules(model, rows)[read]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    own, plain = gradients(model, ours), gradients(model, theirs)
    for parameter, expected in plain.items():
        torch.testing.assert_close(own[parameter], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", MODELS)
def test_decoding_gives_what_whole_rows_give(name: str) -> None:
    """Three rows, of which 1, 2 and 17 tokens are there at the start; two begin alike."""
    model, rows, prompts = MODELS[name](), torch.arange(3), torch.tensor([1, 2, 17])
    trunk = head.trunk(model)
    ids = torch.randint(0, 40, (3, 21), generator=torch.Generator().manual_seed(0))
    ids[2, :2] = ids[1, :2]
    decoder, cache = Decoder(trunk), SlotCache(trunk.config.num_hidden_layers, 3, 21, torch.device("cpu"))
    with torch.inference_mode():
        expected = trunk(input_ids=ids).last_hidden_state
        hidden, prefilled = decoder.prefill(PackedRows.from_padded(ids, prompts))
        cache.insert(rows, prefilled, prompts)
        assert torch.equal(cache.lengths, prompts)
        torch.testing.assert_close(hidden, expected[rows, prompts - 1], rtol=0, atol=1e-12)
        for _ in range(4):
            mask, columns = cache.begin_step(3, torch.float64), cache.lengths.clone()
            hidden = decoder.step(ids[rows, columns], columns, mask, cache)
            torch.testing.assert_close(hidden, expected[rows, columns], rtol=0, atol=1e-12)
            cache.lengths += 1
