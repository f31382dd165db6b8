"""Loading and building: same seed same weights, folders that round-trip, and models that fit their tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf.config.model import ModelConfig
from rlhf.errors import ModelError
from rlhf.models.dropout import disable_dropout
from rlhf.models.load import load_policy, load_sequence_classifier, load_tokenizer

TEXTS = ["Where is my parcel?", "It arrives tomorrow, around noon."] * 10
FAMILIES = ["llama", "gpt2", "opt"]


def scratch(family: str = "llama", layers: int = 3, **keys: Any) -> ModelConfig:
    architecture = {"type": family, "hidden_size": 32, "layers": layers, "heads": 4, "max_positions": 64}
    return ModelConfig(architecture=architecture, tokenizer={"vocab_size": 300}, **keys)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(scratch(), TEXTS)


def logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([tokenizer.encode("Where is it?")])).logits


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_trained_tokenizer_encodes_any_text_and_is_reproducible(tokenizer: PreTrainedTokenizerBase) -> None:
    text = "Ünïcödé 😀 \x00\n\tparcel"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer) <= 300
    assert len(tokenizer.encode("parcel")) < len("parcel")
    again = load_tokenizer(scratch(), TEXTS)
    assert again.get_vocab() == tokenizer.get_vocab()
    assert again.encode(text) == tokenizer.encode(text)
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    assert tokenizer.chat_template is not None


def test_a_tokenizer_needs_texts() -> None:
    for texts in (None, [], [" "]):
        with pytest.raises(ModelError, match=r"^model\.tokenizer: there are no texts to train a tokenizer on"):
            load_tokenizer(scratch(), texts)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_seed_decides_about_the_weights_and_nothing_else(family: str, tokenizer: PreTrainedTokenizerBase) -> None:
    before = torch.get_rng_state()
    first, second, other = (load_policy(scratch(family), tokenizer, seed=seed) for seed in (1, 1, 2))
    assert same_weights(first, second)
    assert not same_weights(first, other)
    assert torch.equal(torch.get_rng_state(), before)
    assert {parameter.dtype for parameter in first.parameters()} == {torch.float32}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_folder_is_the_same_model(family: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    model = load_policy(scratch(family), tokenizer)
    folder = save(model, tokenizer, tmp_path / "model")
    config = ModelConfig(path=folder)
    loaded_tokenizer = load_tokenizer(config)
    assert loaded_tokenizer.get_vocab() == tokenizer.get_vocab()
    assert loaded_tokenizer.chat_template == tokenizer.chat_template
    assert same_weights(load_policy(config, loaded_tokenizer), model)
    # an earlier stage's folder takes the place of the origin, also of one from scratch
    assert same_weights(load_policy(scratch(family, num_layers=1), tokenizer, folder=folder), model)
    assert load_tokenizer(scratch(family), folder=folder).get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_layers_are_kept(family: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    whole = load_policy(scratch(family), tokenizer)
    folder = save(whole, tokenizer, tmp_path / "model")
    part = load_policy(ModelConfig(path=folder, num_layers=2), tokenizer)
    assert part.config.num_hidden_layers == 2
    names = set(part.state_dict())
    assert names < set(whole.state_dict())
    assert all(torch.equal(part.state_dict()[name], whole.state_dict()[name]) for name in names)
    # By hand: the blocks beyond the second taken out of the whole model.
    blocks = next(module for module in whole.modules() if isinstance(module, nn.ModuleList))
    del blocks[2]
    torch.testing.assert_close(logits(part, tokenizer), logits(whole, tokenizer), atol=0, rtol=0)
    assert load_policy(scratch(family, num_layers=2), tokenizer).config.num_hidden_layers == 2


def test_blocks_that_differ_are_kept_with_their_kinds(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    kinds = [[["global", "local"], 2]]
    config = GPTNeoConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_layers=4, num_heads=4, attention_types=kinds, window_size=8
    )
    folder = save(GPTNeoForCausalLM(config), tokenizer, tmp_path / "neo")
    part = load_policy(ModelConfig(path=folder, num_layers=3), tokenizer)
    assert part.config.num_layers == 3
    assert part.config.attention_layers == ["global", "local", "global"]
    assert same_weights(load_policy(ModelConfig(path=save(part, tokenizer, tmp_path / "part")), tokenizer), part)


def test_more_layers_than_there_are(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ModelError, match=r"model\.num_layers 4: the model has 3 blocks; allowed are 1 to 3"):
        load_policy(scratch(num_layers=4), tokenizer)


def test_weights_come_in_the_dtype_that_is_asked_for(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    half = load_policy(scratch(), tokenizer, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    folder = save(half, tokenizer, tmp_path / "model")
    config = ModelConfig(path=folder)
    assert load_policy(config, tokenizer).dtype == torch.float32  # not the file's
    assert load_policy(config, tokenizer, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_no_dropout_is_left_in_plain_numbers_or_modules(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    common = {"vocab_size": len(tokenizer), "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 0}
    models: list[PreTrainedModel] = [
        OPTForCausalLM(
            OPTConfig(
                hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64, word_embed_proj_dim=32,
                dropout=0.5, attention_dropout=0.5, layerdrop=0.1, **common,
            )
        ),
        GPT2LMHeadModel(
            GPT2Config(n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5, **common)
        ),
    ]  # fmt: skip
    for number, model in enumerate(models):
        model.train()
        torch.manual_seed(0)
        assert not torch.equal(logits(model, tokenizer), logits(model, tokenizer))
        loaded = load_policy(ModelConfig(path=save(model, tokenizer, tmp_path / str(number))), tokenizer).train()
        assert torch.equal(logits(loaded, tokenizer), logits(loaded, tokenizer))
        disable_dropout(model)
        assert torch.equal(logits(model, tokenizer), logits(loaded, tokenizer))
        reloaded = AutoModelForCausalLM.from_pretrained(save(model, tokenizer, tmp_path / "again")).train()
        assert torch.equal(logits(reloaded, tokenizer), logits(reloaded, tokenizer))


def test_added_tokens_get_rows_that_are_not_likelier_than_average(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(scratch(), TEXTS)
    model = load_policy(scratch(), tokenizer)
    folder = save(model, tokenizer, tmp_path / "model")
    size = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    before = torch.get_rng_state()
    grown = load_policy(ModelConfig(path=folder), tokenizer)
    assert torch.equal(torch.get_rng_state(), before)
    assert grown.get_input_embeddings().num_embeddings == grown.config.vocab_size == size + 1
    old, new = logits(model, tokenizer), logits(grown, tokenizer)
    torch.testing.assert_close(new[..., :size], old, atol=1e-6, rtol=0)
    torch.testing.assert_close(new[..., size], old.mean(dim=-1), atol=1e-5, rtol=0)
    assert (new.softmax(dim=-1)[..., size] <= 1 / size).all()


def test_spare_rows_of_the_embedding_stay(tokenizer: PreTrainedTokenizerBase) -> None:
    model = load_policy(scratch(), tokenizer)
    small = load_tokenizer(ModelConfig(architecture=scratch().architecture, tokenizer={"vocab_size": 260}), TEXTS)
    assert len(small) < len(tokenizer)
    classifier = load_sequence_classifier(model, small)
    assert classifier.config.vocab_size == len(tokenizer)


def test_nothing_of_the_origins_sampling_options_remains(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    model = load_policy(scratch(), tokenizer)
    folder = save(model, tokenizer, tmp_path / "model")
    leaky = {"do_sample": True, "temperature": 0.3, "top_k": 5, "repetition_penalty": 1.2, "eos_token_id": [5, 6]}
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps(leaky))
    loaded = load_policy(ModelConfig(path=folder), tokenizer)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    assert loaded.generation_config.to_dict() == GenerationConfig(**ends).to_dict()
    assert loaded.config.eos_token_id == tokenizer.eos_token_id
    assert loaded.config.pad_token_id == tokenizer.pad_token_id


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reward_model_reads_its_score_at_the_last_token_that_is_not_pad(
    family: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    policy = load_policy(scratch(family), tokenizer)
    folder = save(policy, tokenizer, tmp_path / "policy")
    from_model = load_sequence_classifier(policy, tokenizer, seed=5)
    from_folder = load_sequence_classifier(folder, tokenizer, seed=5)
    assert same_weights(from_model, from_folder)
    ids = tokenizer.encode("It arrives tomorrow.")
    padded = torch.tensor([[*ids, *[tokenizer.pad_token_id] * 3]])
    with torch.no_grad():
        score = from_model(padded, attention_mask=(padded != tokenizer.pad_token_id).long()).logits  # (1, 1)
        last = policy.base_model(torch.tensor([ids])).last_hidden_state[0, -1]  # (d,)
    assert score.shape == (1, 1)
    torch.testing.assert_close(score[0, 0], last @ from_model.score.weight[0].detach(), atol=1e-5, rtol=0)


def test_a_new_head_has_the_deviation_of_its_width(tokenizer: PreTrainedTokenizerBase) -> None:
    policy = load_policy(scratch(layers=1), tokenizer)
    heads = torch.cat([load_sequence_classifier(policy, tokenizer, seed=seed).score.weight for seed in range(40)])
    # 1,280 draws: their deviation has a relative error of 1 / sqrt(2 * 1280) = 2%
    assert heads.std().item() == pytest.approx(33**-0.5, rel=0.08)
    assert heads.mean().item() == pytest.approx(0, abs=4 * (33 * 1280) ** -0.5)
    start = policy.get_input_embeddings().weight[0]  # drawn first from the seed
    assert abs(torch.corrcoef(torch.stack([start, heads[0]]))[0, 1]) < 0.8


def test_a_saved_reward_model_keeps_its_head(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    model = load_sequence_classifier(scratch(), tokenizer, seed=1)
    folder = save(model, tokenizer, tmp_path / "reward")
    assert same_weights(load_sequence_classifier(folder, tokenizer, seed=2), model)
    assert same_weights(AutoModelForSequenceClassification.from_pretrained(folder), model)
    with pytest.raises(ModelError, match=r"a reward model \(LlamaForSequenceClassification\), not a language model"):
        load_policy(ModelConfig(path=folder), tokenizer)


def test_a_reward_model_may_have_a_truncated_trunk(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    folder = save(load_policy(scratch(), tokenizer), tokenizer, tmp_path / "policy")
    model = load_sequence_classifier(ModelConfig(path=folder, num_layers=1), tokenizer)
    assert model.config.num_hidden_layers == 1
    assert model.config.num_labels == 1


def test_key_value_heads_are_for_llama_only(tokenizer: PreTrainedTokenizerBase) -> None:
    architecture = {"type": "opt", "hidden_size": 32, "heads": 4, "key_value_heads": 2}
    with pytest.raises(ValueError, match="key_value_heads is for type llama, not opt: remove it"):
        ModelConfig(architecture=architecture)
    grouped = ModelConfig(architecture={**architecture, "type": "llama"})
    assert load_policy(grouped, tokenizer).config.num_key_value_heads == 2


def test_damaged_folders(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    def folder(name: str) -> Path:
        return Path(save(load_policy(scratch(), tokenizer), tokenizer, tmp_path / name))

    def refused(path: Path, message: str) -> None:
        with pytest.raises(ModelError, match=message):
            load_policy(ModelConfig(path=str(path)), tokenizer)

    empty = folder("no_weights")
    (empty / "model.safetensors").unlink()
    refused(empty, r"no_weights: the model cannot be loaded: OSError: .* Give a folder that save_pretrained wrote\.")
    cut = folder("cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:100])
    refused(cut, r"cut: the model cannot be loaded: SafetensorError: ")
    unknown = folder("unknown")
    (unknown / "config.json").write_text('{"model_type": "no_such_family"}')
    refused(unknown, r"unknown: the model cannot be loaded: ValueError: .*no_such_family")
    lacking = folder("lacking")
    config = json.loads((lacking / "config.json").read_text())
    (lacking / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    refused(lacking, r"lacking: its files lack \d+ of the model's weights \(model\.layers\.3\.")
    for file in folder("no_tokenizer").glob("*token*"):
        file.unlink()
    with pytest.raises(ModelError, match=r"no_tokenizer: the tokenizer cannot be loaded: "):
        load_tokenizer(ModelConfig(path=str(tmp_path / "no_tokenizer")))
