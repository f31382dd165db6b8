"""Scoring with a tiny sequence-classification model, against one unpadded forward pass per response."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from reward_models.chat import PLAIN_TEMPLATE, encode_dialogue
from reward_models.combine import CombinedReward, Component
from reward_models.errors import RewardError
from reward_models.normalise import Normalisation
from reward_models.scalar import ScalarRewardModel

PROMPTS = ["Hi", "Where is my order? It has been two weeks.", "a", "Thanks, that is all that I wanted to know."]
COMPLETIONS = ["It is on its way.", "b", "No.", "Glad to help you. Have a nice day, and come back soon!"]


def byte_tokenizer(template: str | None = PLAIN_TEMPLATE, **special: str) -> PreTrainedTokenizerFast:
    """One token per byte; `<eos>` is 256 and, if it is asked for, `<pad>` 257."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", **special)
    tokenizer.chat_template = template
    return tokenizer


def llama(kind=LlamaForSequenceClassification, **options):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(**{"vocab_size": 258, "num_labels": 1, "max_position_embeddings": 256, **sizes, **options})
    model = kind(config)
    for parameter in model.parameters():  # larger weights than usual, so that scores of different texts differ clearly
        parameter.data.mul_(5.0)
    return model


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "reward"
    llama().save_pretrained(path)
    byte_tokenizer(pad_token="<pad>").save_pretrained(path)
    Normalisation(mean=0.25, std=2.0, samples=10).save(path)
    return path


@torch.no_grad()
def slow_scores(model, tokenizer, prompts=PROMPTS, completions=COMPLETIONS) -> list[float]:
    """The head applied to the backbone's state at the last token, one unpadded text at a time."""
    scores = []
    for prompt, completion in zip(prompts, completions, strict=True):
        text = f"User:\n{prompt}\nAssistant:\n{completion}<eos>"
        ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
        scores.append(model.score(model.base_model(ids).last_hidden_state[0, -1]).item())
    return scores


@pytest.mark.parametrize("batch_tokens", [1, 60, 150, 8192])
def test_scores_are_those_of_single_texts_in_the_given_order(folder, batch_tokens) -> None:
    rewards = ScalarRewardModel.from_folder(folder, batch_tokens=batch_tokens)
    expected = np.array(slow_scores(rewards.model, rewards.tokenizer))
    assert np.ptp(expected) > 0.1  # else nothing below could fail
    np.testing.assert_allclose(rewards.raw_score(PROMPTS, COMPLETIONS), expected, atol=1e-5)
    np.testing.assert_allclose(rewards.score(PROMPTS, COMPLETIONS), (expected - 0.25) / 2.0, atol=1e-5)
    back = rewards.raw_score(PROMPTS[::-1], COMPLETIONS[::-1])
    np.testing.assert_allclose(back[::-1], expected, atol=1e-5)


def test_batches_stay_within_the_token_budget_and_hold_rows_of_similar_length(folder, monkeypatch) -> None:
    rewards = ScalarRewardModel.from_folder(folder, batch_tokens=150)
    forward, shapes = rewards.model.forward, []

    def spy(input_ids, **kwargs):
        shapes.append(tuple(input_ids.shape))
        return forward(input_ids=input_ids, **kwargs)

    monkeypatch.setattr(rewards.model, "forward", spy)
    rewards.raw_score(PROMPTS, COMPLETIONS)
    lengths = [
        len(encode_dialogue(rewards.tokenizer, [{"role": "user", "content": p}, {"role": "assistant", "content": c}]))
        for p, c in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    assert sorted(lengths) == [23, 38, 61, 115]
    assert shapes == [(1, 115), (2, 61), (1, 23)]


def test_messages_and_strings_score_alike_and_turns_before_the_last_count(folder) -> None:
    rewards = ScalarRewardModel.from_folder(folder)
    prompt = [{"role": "user", "content": "Hi"}]
    completion = [{"role": "assistant", "content": "Yes."}]
    as_text, as_messages = rewards.raw_score(["Hi", prompt], ["Yes.", completion])
    assert as_text == pytest.approx(as_messages, abs=1e-6)

    longer = [*prompt, {"role": "assistant", "content": "What?"}, {"role": "user", "content": "Well?"}]
    (score,) = rewards.raw_score([longer], [completion])
    (expected,) = slow_scores(rewards.model, rewards.tokenizer, ["Hi\nAssistant:\nWhat?<eos>\nUser:\nWell?"], ["Yes."])
    assert score == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("pad", ["<eos>", None, "<added>"])
def test_pad_of_the_tokenizer_does_not_matter(tmp_path, pad) -> None:
    # Pad equal to EOS, none at all, and one that the model has no embedding for.
    model = llama(vocab_size=257)
    reference = ScalarRewardModel(llama(vocab_size=257), byte_tokenizer(pad_token="<eos>"))
    expected = slow_scores(reference.model, reference.tokenizer)
    rewards = ScalarRewardModel(model, byte_tokenizer(**({"pad_token": pad} if pad else {})))
    np.testing.assert_allclose(rewards.raw_score(PROMPTS, COMPLETIONS), expected, atol=1e-5)


def test_other_architectures_and_raw_text(tmp_path) -> None:
    torch.manual_seed(0)
    decoder = GPT2ForSequenceClassification(
        GPT2Config(vocab_size=257, n_positions=256, n_embd=8, n_layer=1, n_head=2, num_labels=1)
    )
    encoder = BertForSequenceClassification(
        BertConfig(
            vocab_size=257, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, num_labels=1
        )
    )
    for model in (decoder, encoder):
        rewards = ScalarRewardModel(model, byte_tokenizer(template=None))
        assert rewards.tokenizer.chat_template is None
        together = rewards.raw_score(PROMPTS, COMPLETIONS)
        for i, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
            ids = rewards.tokenizer.encode(prompt + completion + "<eos>", add_special_tokens=False)
            with torch.no_grad():
                alone = model(torch.tensor([ids])).logits.item()
            assert together[i] == pytest.approx(alone, abs=1e-5)


def test_truncated_backbone_is_just_a_folder(tmp_path) -> None:
    model = llama()
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    model.save_pretrained(tmp_path)
    byte_tokenizer(pad_token="<pad>").save_pretrained(tmp_path)
    rewards = ScalarRewardModel.from_folder(tmp_path)
    assert len(rewards.model.model.layers) == 1
    np.testing.assert_allclose(
        rewards.raw_score(PROMPTS, COMPLETIONS), slow_scores(model, rewards.tokenizer), atol=1e-5
    )


def test_bfloat16_is_close_and_float32_is_the_default(folder) -> None:
    full, half = ScalarRewardModel.from_folder(folder), ScalarRewardModel.from_folder(folder, dtype="bfloat16")
    assert (full.model.dtype, half.model.dtype) == (torch.float32, torch.bfloat16)
    scores = half.raw_score(PROMPTS, COMPLETIONS)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, full.raw_score(PROMPTS, COMPLETIONS), rtol=0.1, atol=0.02)


def test_it_is_a_reward_function_of_texts(folder) -> None:
    rewards = ScalarRewardModel.from_folder(folder)
    scores = CombinedReward([Component("model", rewards)])(
        PROMPTS, COMPLETIONS, completion_ids=[[999_999]] * 4, topic=["x"] * 4
    )
    np.testing.assert_allclose(scores.total, rewards.score(PROMPTS, COMPLETIONS), atol=1e-12)
    assert all(isinstance(value, float) for value in rewards(prompts=PROMPTS, completions=COMPLETIONS))


def test_scoring_neither_trains_nor_keeps_gradients(folder) -> None:
    rewards = ScalarRewardModel.from_folder(folder)
    rewards.raw_score(PROMPTS, COMPLETIONS)
    assert not rewards.model.training
    assert all(parameter.grad is None for parameter in rewards.model.parameters())


def test_no_responses(folder) -> None:
    assert ScalarRewardModel.from_folder(folder).score([], []).shape == (0,)


def test_text_beyond_the_context_has_no_score_and_is_named(folder, caplog) -> None:
    rewards = ScalarRewardModel.from_folder(folder)
    scores = rewards.score(["Hi", "Hi", "Hi"], ["Yes", "x" * 300, "No"])
    assert math.isnan(scores[1])
    assert np.isfinite(scores[[0, 2]]).all()
    assert "Sample 1 has 321 tokens, the reward model reads 256" in caplog.text


def test_folder_without_normalisation_scores_raw_and_says_so(folder, caplog) -> None:
    (folder / "normalisation.json").unlink()
    with caplog.at_level(logging.WARNING):
        rewards = ScalarRewardModel.from_folder(folder)
    assert "has no normalisation.json" in caplog.text
    np.testing.assert_array_equal(rewards.score(PROMPTS, COMPLETIONS), rewards.raw_score(PROMPTS, COMPLETIONS))


def test_folder_that_is_missing(tmp_path) -> None:
    with pytest.raises(RewardError, match=r"no reward model in .*nowhere .*run the reward stage first"):
        ScalarRewardModel.from_folder(tmp_path / "nowhere")


def test_language_model_is_refused(folder) -> None:
    llama(LlamaForCausalLM).save_pretrained(folder)
    with pytest.raises(RewardError, match=r"no weights for \['score.weight'\], so its scores would be random"):
        ScalarRewardModel.from_folder(folder)


def test_several_labels_are_refused(folder) -> None:
    llama(num_labels=2).save_pretrained(folder)
    with pytest.raises(RewardError, match=r"1 label .*has 2"):
        ScalarRewardModel.from_folder(folder)


def test_folder_that_is_no_model(tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RewardError, match="cannot be loaded as a reward model"):
        ScalarRewardModel.from_folder(tmp_path)


def test_settings_are_checked() -> None:
    with pytest.raises(RewardError, match="batch_tokens is 0"):
        ScalarRewardModel(llama(), byte_tokenizer(), batch_tokens=0)
    with pytest.raises(RewardError, match="no EOS among the 200 tokens"):
        ScalarRewardModel(llama(vocab_size=200), byte_tokenizer())
