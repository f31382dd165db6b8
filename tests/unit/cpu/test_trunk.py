"""Trunks in compiled code against transformers' own modules, in value and gradient, and what must go through these."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cpu_helpers import COMPILED, LORA, SIZES, adapted, llama, near, needs_bfloat16, packed, qwen2, shaken
from peft import LoraConfig
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
)

from rlhf.cpu import trunk
from rlhf.packing.packed import PackedRows
from rlhf.policies import head
from rlhf.policies.decoder_only import DecoderOnly

LENGTHS = [9, 4, 7]


def mistral(window: int | None = None) -> Any:
    return shaken(MistralForCausalLM(MistralConfig(**SIZES, sliding_window=window)))


def classifier() -> Any:
    return shaken(LlamaForSequenceClassification(LlamaConfig(**SIZES, num_labels=1)))


MODELS: dict[str, Callable[[], Any]] = {
    "llama": llama,
    "llama without shared keys": lambda: llama(num_key_value_heads=3),
    "llama with scaled rotary embeddings": lambda: llama(
        rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    ),
    "qwen2": qwen2,
    "mistral": mistral,
    "classifier": classifier,
    "adapters": adapted,
    "adapters of rank 16": lambda: adapted(r=16),
    "adapters beside biases": lambda: adapted(base=qwen2()),
    "adapters on some matrices": lambda: adapted(target_modules=["q_proj", "down_proj"], layers_to_transform=[1]),
}


def everything(rows: PackedRows) -> torch.Tensor:
    return torch.arange(len(rows.input_ids))


def compiled(model: Any, rows: PackedRows, read: torch.Tensor) -> torch.Tensor:
    backend = DecoderOnly(model, COMPILED).backend
    assert backend is not None
    hidden = backend.hidden_states(rows, read)
    assert hidden is not None
    return hidden


def gradients(model: Any, hidden: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    weights = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(2))
    (hidden * weights.to(hidden)).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shared", [0, 3])
def test_values_and_gradients_are_those_of_the_modules(name: str, shared: int) -> None:
    model, rows = MODELS[name](), packed(LENGTHS, shared)
    read = torch.tensor([1, len(rows.input_ids) - 1, 4, 1, 6])  # of the others the last block needs keys and values
    ours, theirs = compiled(model, rows, read), head.hidden_states(model, rows, read)
    near(ours, theirs, 3e-6)
    own, plain = gradients(model, ours), gradients(model, theirs)
    assert own.keys() == plain.keys()
    for parameter, expected in plain.items():
        assert own[parameter].dtype == expected.dtype
        near(own[parameter], expected, 3e-5)


def test_the_policy_takes_the_compiled_way_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    monkeypatch.setattr(type(model.model), "forward", None)  # calling it would be an error
    assert DecoderOnly(model, COMPILED).states(packed(LENGTHS), torch.tensor([3, 5])).shape == (2, 96)


def test_a_policy_whose_adapters_are_off_is_the_one_that_training_starts_from() -> None:
    """To the bit: the first ratio is 1 and the first KL is 0. After a step of training it is the same one still."""
    model, rows = adapted(moved=False), packed(LENGTHS, 2)
    read = everything(rows)
    before = compiled(model, rows, read)
    with model.disable_adapter():
        assert torch.equal(compiled(model, rows, read), before)
    assert all("lora_B" in name or not grad.any() for name, grad in gradients(model, before).items())  # B is 0
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    optimizer.step()
    after = compiled(model, rows, read)
    assert (after - before).abs().max() > 1e-4
    near(after, head.hidden_states(model, rows, read), 3e-6)
    with model.disable_adapter():
        assert torch.equal(compiled(model, rows, read), before)


def test_frozen_weights_get_no_gradient_and_below_the_lowest_adapter_nothing_is_kept() -> None:
    model, rows = adapted(layers_to_transform=[1], target_modules=["v_proj"]), packed(LENGTHS)
    hidden = compiled(model, rows, everything(rows))
    nodes, seen = [hidden.grad_fn], set()
    while nodes:
        seen.add(node := nodes.pop())
        nodes += [other for other, _ in node.next_functions if other is not None]
    assert [type(node).__name__ for node in seen].count("_AttentionInputBackward") == 1  # of two blocks
    assert {name.split(".")[-2] for name in gradients(model, hidden)} == {"default"}


@needs_bfloat16
@pytest.mark.parametrize("make", [llama, adapted])
def test_bfloat16_products_round_as_autocast_does(make: Callable[[], Any]) -> None:
    model, rows = make(), packed(LENGTHS)
    exact = compiled(model, rows, everything(rows))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = compiled(model, rows, everything(rows))
        theirs = head.hidden_states(model, rows, everything(rows))
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).norm() < 1.5 * (theirs.float() - exact).norm()


@pytest.mark.parametrize("make", [llama, lambda: llama().bfloat16()])
def test_bfloat16_goes_through_the_modules_where_the_processor_does_not_multiply_it(
    make: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlhf.cpu.trunk.multiplies_bfloat16", lambda: False)
    model, rows = make(), packed(LENGTHS)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=model.dtype == torch.float32):
        assert not trunk.can_run(head.trunk(model), rows.width)  # asked first: running it would write beyond tensors
        backend = DecoderOnly(model, COMPILED).backend
        assert backend is not None
        assert backend.hidden_states(rows, rows.last) is None


def test_a_merged_adapter_counts_once() -> None:
    model, rows = adapted(), packed(LENGTHS)
    before = compiled(model, rows, everything(rows)).detach()
    model.merge_adapter()
    near(compiled(model, rows, everything(rows)), before, 1e-5)
    model.unmerge_adapter()
    near(compiled(model, rows, everything(rows)), before, 1e-5)


def test_an_adapter_that_is_not_in_use_is_none() -> None:
    model, rows = two_adapters(), packed(LENGTHS)
    for name in ("default", "other"):
        model.set_adapter(name)
        near(compiled(model, rows, everything(rows)), head.hidden_states(model, rows, everything(rows)), 3e-6)


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


def sharded() -> Any:
    model = llama()
    model.model.embed_tokens.weight.ds_id = 0
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
    "sharded weights": sharded,
    "float64": lambda: llama().double(),
    "biases behind attention": lambda: llama(attention_bias=True, mlp_bias=True),
    "small heads": lambda: llama(head_dim=16),
    "an odd width": lambda: llama(intermediate_size=100),
}


@pytest.mark.parametrize("name", REFUSED)
def test_everything_else_goes_through_the_modules(name: str) -> None:
    model, rows = REFUSED[name]().train(), packed(LENGTHS)
    torch.manual_seed(0)
    ours = DecoderOnly(model, COMPILED).states(rows, everything(rows))
    torch.manual_seed(0)
    assert torch.equal(ours, head.hidden_states(model, rows, everything(rows)))


def test_what_changes_after_construction_is_seen() -> None:
    policy, rows = DecoderOnly(llama(), COMPILED), packed(LENGTHS)
    assert policy.backend is not None
    assert policy.backend.hidden_states(rows, rows.last) is not None
    policy.model.model.gradient_checkpointing = True  # type: ignore[union-attr]
    assert policy.backend.hidden_states(rows, rows.last) is None
    policy.model.model.gradient_checkpointing = False  # type: ignore[union-attr]
    assert policy.backend.hidden_states(packed([2049]), torch.tensor([0])) is None  # too long
    policy.model.double()
    assert policy.backend.hidden_states(rows, rows.last) is None


def test_padding_never_reaches_beyond_the_positions_that_a_model_has() -> None:
    """20 tokens are 32 columns of packed rows, but no more than 20 in a model with 20 positions."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=20)).double().eval()
    ids = torch.randint(0, 40, (2, 20))
    rows = PackedRows.from_padded(ids, torch.tensor([20, 3]))
    hidden = head.hidden_states(model, rows, rows.grid[0])
    torch.testing.assert_close(hidden, model.transformer(ids[:1]).last_hidden_state[0], rtol=0, atol=1e-12)
