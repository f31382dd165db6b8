"""Scores and the reward loss against one row at a time in plain transformers; encoders are called as they are."""

import math

import pytest
import torch
from stage_helpers import CPU, Recorder, gradients, make_config, tiny_model, write_demonstrations, write_preferences

from rlhf.files.run_folder import RunFolder
from rlhf.models.load import load_tokenizer
from rlhf.policies.decoder_only import DecoderOnly
from rlhf.stages import reward, reward_trainer, sft
from rlhf.stages.corpus import texts

FAMILIES = ["llama", "gpt2", "opt"]
PROMPT = [5, 6, 7, 8]
PAIRS = [  # chosen, rejected; a row may be the beginning of another one
    ([*PROMPT, 9, 10, 2], [*PROMPT, 9, 11, 12, 13, 14, 2]),
    ([20, 21, 22, 23, 24, 25, 2], [20, 21, 2]),
    ([30, 31, 32, 33], [30, 31]),
]


def batch_of(pairs):
    return reward_trainer.collate([{"chosen_ids": c, "rejected_ids": r} for c, r in pairs], pad=0)


def packed(model, batch):
    return reward_trainer.score_packed(DecoderOnly(model, CPU), **batch)


def oracle(model, pairs):
    """Scores (2, B) by the model's own forward pass on each row alone."""
    return torch.stack([
        torch.stack([type(model).forward(model, input_ids=torch.tensor([pair[which]])).logits[0, 0] for pair in pairs])
        for which in (0, 1)
    ])  # fmt: skip


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_all_gradients_are_those_of_single_rows(family, lora):
    model = tiny_model(family, classifier=True, lora=lora)
    assert reward_trainer.reads_last_token(model)
    expected = oracle(model, PAIRS)
    torch.testing.assert_close(packed(model, batch_of(PAIRS)).view(2, -1), expected.float(), rtol=0, atol=1e-6)
    loss = reward_trainer.pair_loss(*packed(model, batch_of(PAIRS)).view(2, -1), 0.2)
    chosen, rejected = oracle(model, PAIRS)
    literal = -(chosen.exp() / (chosen.exp() + rejected.exp())).log().mean() + 0.2 * ((chosen + rejected) ** 2).mean()
    assert loss.item() == pytest.approx(literal.item(), abs=1e-6)
    ours, theirs = gradients(model, loss), gradients(model, literal)
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_order_cannot_change_the_scores(family):
    model, batch = tiny_model(family, classifier=True), batch_of(PAIRS)
    scores = packed(model, batch)
    wide = {**batch, "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, 7), value=17)}
    torch.testing.assert_close(packed(model, wide), scores, rtol=0, atol=1e-6)
    turned = packed(model, batch_of(PAIRS[::-1])).view(2, -1).flip(1)
    torch.testing.assert_close(turned, scores.view(2, -1), rtol=0, atol=1e-6)


def test_the_loss_is_the_mean_over_pairs():
    chosen, rejected = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0])
    by_hand = (math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(3.0))) / 2
    assert reward_trainer.pair_loss(chosen, rejected, None).item() == pytest.approx(by_hand, abs=1e-6)
    assert reward_trainer.pair_loss(chosen, rejected, 0.5).item() == pytest.approx(by_hand + 0.5 * 1.625, abs=1e-6)


def test_dropout_of_the_adapters_acts_in_training_alone():
    model, batch = tiny_model("llama", classifier=True, lora=True, dropout=0.5), batch_of(PAIRS)
    assert not torch.allclose(packed(model, batch), packed(model, batch), atol=1e-3)
    model.eval()
    torch.testing.assert_close(packed(model, batch).view(2, -1), oracle(model, PAIRS).float(), rtol=0, atol=1e-6)


def test_an_encoder_is_called_as_it_is():
    model, batch = tiny_model("bert", classifier=True), batch_of(PAIRS)
    assert not reward_trainer.reads_last_token(model)
    scores = reward_trainer.score_padded(model.forward, CPU, **batch)
    torch.testing.assert_close(scores.view(2, -1), oracle(model, PAIRS).float(), rtol=0, atol=1e-6)


def test_an_encoder_is_trained(tmp_path, monkeypatch):
    write_demonstrations(tmp_path / "demonstrations.jsonl")
    write_preferences(tmp_path / "preferences.jsonl")
    keys = {"normalisation_samples": 8, "normalisation_max_response_tokens": 4, "learning_rate": 1e-2, "epochs": 4}
    config, folder = make_config(tmp_path, sft={"max_steps": 1}, reward=keys), RunFolder(tmp_path / "run")
    sft.run(config, folder, Recorder(), CPU)
    tokenizer = load_tokenizer(config.model, texts(config))

    def build(*_):
        model = tiny_model("bert", classifier=True).float().eval()
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        return model

    monkeypatch.setattr(reward, "_build", build)
    recorder = Recorder()
    results = reward.run(config, folder, recorder, CPU)
    losses = recorder.curve("reward/validation_loss")
    assert results["validation_loss"] == min(losses) < losses[0]
