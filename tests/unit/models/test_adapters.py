"""LoRA: neutral at first, in the layers that are named, and merged into folders that load without peft."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from rlhf.config.model import LoraConfig, ModelConfig
from rlhf.errors import ModelError
from rlhf.models.adapters import add_adapters, merge_and_save
from rlhf.models.dropout import disable_dropout
from rlhf.models.load import load_policy, load_sequence_classifier, load_tokenizer

IDS = torch.tensor([[5, 6, 7, 8]])
FAMILIES = ["llama", "gpt2", "opt"]


def scratch(family: str = "llama") -> ModelConfig:
    return ModelConfig(architecture={"type": family, "hidden_size": 32, "layers": 4, "heads": 4, "max_positions": 64})


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(scratch(), ["Where is my parcel? It arrives tomorrow."] * 10)


def output(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def stir(model: peft.PeftModel) -> None:
    """Stand for training: move every trainable weight."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def adapted(model: peft.PeftModel) -> set[str]:
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora_" in name]
    return {name.removeprefix("base_model.model.").partition(".lora_")[0] for name in names}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("top_layers", [None, 2])
def test_adapters_are_neutral_then_merge_exactly(
    family: str, top_layers: int | None, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    base = load_policy(scratch(family), tokenizer)
    before = output(base)
    model = add_adapters(base, LoraConfig(top_layers=top_layers), "language_model")
    torch.testing.assert_close(output(model), before, atol=0, rtol=0)
    stir(model)
    after = output(model)
    assert (after - before).abs().max() > 1e-3
    merged = merge_and_save(model, tokenizer, tmp_path / "runs" / "policy")
    assert not any("lora" in name for name, _ in merged.named_modules())
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "policy")
    torch.testing.assert_close(output(plain), after, atol=1e-5, rtol=0)
    assert AutoTokenizer.from_pretrained(tmp_path / "runs" / "policy").get_vocab() == tokenizer.get_vocab()
    assert [entry.name for entry in (tmp_path / "runs").iterdir()] == ["policy"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reward_models_head_is_trained_in_full_and_saved(
    family: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = add_adapters(load_sequence_classifier(scratch(family), tokenizer), LoraConfig(top_layers=1), "reward_model")
    trainable = {
        name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora_" not in name
    }
    assert len(trainable) == 1
    assert "score" in trainable.pop()
    stir(model)
    after = output(model)
    merge_and_save(model, tokenizer, tmp_path / "reward")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    assert plain.config.num_labels == 1
    torch.testing.assert_close(output(plain), after, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("targets", ["all-linear", None])
def test_only_the_top_layers_are_adapted(family: str, targets: str | None, tokenizer: PreTrainedTokenizerBase) -> None:
    named = {"llama": ["q_proj"], "gpt2": ["c_attn"], "opt": ["self_attn.q_proj"]}[family]
    config = LoraConfig(top_layers=2, target_modules=targets or named)
    model = add_adapters(load_policy(scratch(family), tokenizer), config, "language_model")
    numbers = {
        int(part) for name, parameter in model.named_parameters() if parameter.requires_grad
        for part in name.split(".") if part.isdigit()
    }  # fmt: skip
    assert numbers == {2, 3}


def test_all_linear_layers_of_all_blocks_by_default(tokenizer: PreTrainedTokenizerBase) -> None:
    base = load_policy(scratch(), tokenizer)
    linear = {
        name for name, module in base.named_modules() if isinstance(module, torch.nn.Linear) and name != "lm_head"
    }
    model = add_adapters(base, LoraConfig(), "language_model")
    assert len(linear) == 4 * 7
    assert adapted(model) == linear


def test_rank_and_alpha_set_the_update(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    base = load_policy(scratch(), tokenizer)
    weight = base.model.layers[3].self_attn.q_proj.weight.detach().clone()
    config = LoraConfig(rank=2, alpha=6.0, target_modules=["q_proj"], top_layers=1)
    model = add_adapters(base, config, "language_model")
    stir(model)
    factors = dict(model.named_parameters())
    down, up = (
        factors[f"base_model.model.model.layers.3.self_attn.q_proj.lora_{letter}.default.weight"].detach().clone()
        for letter in "AB"
    )
    assert down.shape == (2, 32)
    merged = merge_and_save(model, tokenizer, tmp_path / "policy")
    # W' = W + (alpha / r) B A
    torch.testing.assert_close(
        merged.model.layers[3].self_attn.q_proj.weight, weight + 3 * up @ down, atol=1e-6, rtol=0
    )


def test_the_seed_draws_the_adapters(tokenizer: PreTrainedTokenizerBase) -> None:
    def first_factor(seed: int) -> Any:
        model = add_adapters(load_policy(scratch(), tokenizer), LoraConfig(), "language_model", seed=seed)
        return next(parameter for parameter in model.parameters() if parameter.requires_grad)

    before = torch.get_rng_state()
    assert torch.equal(first_factor(1), first_factor(1))
    assert not torch.equal(first_factor(1), first_factor(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_of_adapters_is_left_out_or_switched_off(tokenizer: PreTrainedTokenizerBase) -> None:
    def model(**keys: Any) -> peft.PeftModel:
        made = add_adapters(load_policy(scratch(), tokenizer), LoraConfig(dropout=0.5), "language_model", **keys)
        stir(made)
        return made.train()

    noisy, silent = model(), model(dropout=False)
    assert not torch.equal(output(noisy), output(noisy))
    assert torch.equal(output(silent), output(silent))
    disable_dropout(noisy)
    assert torch.equal(output(noisy), output(silent))


def test_a_folder_is_replaced_as_a_whole(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "leftover.bin").write_text("old")
    merge_and_save(load_policy(scratch(), tokenizer), tokenizer, tmp_path / "policy")
    assert (tmp_path / "policy" / "model.safetensors").is_file()
    assert not (tmp_path / "policy" / "leftover.bin").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"top_layers": 5}, r"model\.lora\.top_layers 5: the model has 4 blocks; allowed are 1 to 4"),
        (
            {"target_modules": ["q_proj", "c_attn"]},
            r"model\.lora\.target_modules: the model has no linear layer 'c_attn'; it has down_proj, gate_proj,",
        ),
    ],
)
def test_layers_that_are_not_there(keys: dict[str, Any], message: str, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ModelError, match=message):
        add_adapters(load_policy(scratch(), tokenizer), LoraConfig(**keys), "language_model")
