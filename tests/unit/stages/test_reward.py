"""The reward stage on a tiny model: its loss, what it learns, its metrics, and the scale of its scores."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from stage_helpers import CPU, LOGGED, Recorder, make_config, rows_of, write_demonstrations, write_preferences
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from reward_models.chat import encode_dialogue, to_messages
from reward_models.errors import RewardError
from reward_models.normalise import Normalisation
from reward_models.scalar import ScalarRewardModel
from rlhf.errors import ConfigError, StageError
from rlhf.files.run_folder import RunFolder
from rlhf.stages import normalisation, reward, sft

OTHER_BACKBONE = {
    "architecture": {"type": "gpt2", "hidden_size": 24, "layers": 1, "heads": 2, "max_positions": 160},
    "tokenizer": {"vocab_size": 270},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Data, and a policy that the SFT stage has left in `run/sft`."""
    folder = tmp_path_factory.mktemp("reward")
    write_demonstrations(folder / "demonstrations.jsonl")
    write_preferences(folder / "preferences.jsonl")
    config = make_config(folder, sft={"learning_rate": 1e-2, "epochs": 4}, reward={})
    sft.run(config, RunFolder(folder / "run"), Recorder(), CPU)
    return folder


def run(folder, *, lora=False, dtype="float32", seed=0, **keys):
    values = {"learning_rate": 3e-3, "normalisation_samples": 12, "normalisation_max_response_tokens": 6, **keys}
    config = make_config(folder, sft={}, reward=values, lora=lora, dtype=dtype, seed=seed)
    recorder, target = Recorder(), RunFolder(folder / "run")
    return reward.run(config, target, recorder, CPU), recorder, target.reward, config


def scores(folder, pairs):
    """A saved model's scores of chosen and rejected responses, one row at a time in plain transformers."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def score(prompt, response):
        ids = encode_dialogue(tokenizer, [*to_messages(prompt), {"role": "assistant", "content": response}])
        with torch.no_grad():
            return model(torch.tensor([ids])).logits.item()

    return [score(p.prompt, p.chosen) for p in pairs], [score(p.prompt, p.rejected) for p in pairs]


def bradley_terry(chosen, rejected, centre=0.0):
    """Mean of -log(exp(c) / (exp(c) + exp(r))), and of the centring term."""
    pairs = list(zip(chosen, rejected, strict=True))
    losses = [-math.log(math.exp(c) / (math.exp(c) + math.exp(r))) + centre * (c + r) ** 2 for c, r in pairs]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("keys", [{}, {"center_coefficient": 0.5}, {"microbatch_size": 4}])
@pytest.mark.parametrize("lora", [False, True])
def test_held_out_metrics_are_those_of_the_saved_folder(data, lora, keys):
    results, recorder, folder, config = run(data, lora=lora, **keys)
    pairs = rows_of(config.reward.data, "preferences").validation
    chosen, rejected = scores(folder, pairs)
    assert results["validation_pairs"] == len(pairs) == 10
    centre = keys.get("center_coefficient", 0.0)
    assert results["validation_loss"] == pytest.approx(bradley_terry(chosen, rejected, centre), abs=1e-5)
    assert results["mean_margin"] == pytest.approx(np.mean(chosen) - np.mean(rejected), abs=1e-5)
    assert results["accuracy"] == np.mean([c > r for c, r in zip(chosen, rejected, strict=True)])
    low, high = results["accuracy_interval"]
    assert low - 1e-12 <= results["accuracy"] <= high + 1e-12
    assert high - low > 0.2  # ten pairs say little
    assert recorder.curve("reward/validation_accuracy_low")[-1] == low
    assert recorder.curve("reward/expected_calibration_error")[-1] == results["expected_calibration_error"]
    assert recorder.curve("reward/validation_mean_score")[-1] == pytest.approx(np.mean(chosen + rejected), abs=1e-5)
    assert recorder.curve("reward/validation_max_score")[-1] == pytest.approx(max(chosen + rejected), abs=1e-5)
    loaded = ScalarRewardModel.from_folder(folder)
    texts = [pair.prompt for pair in pairs], [pair.chosen for pair in pairs]
    assert loaded.raw_score(*texts) == pytest.approx(np.array(chosen), abs=1e-5)


@pytest.mark.parametrize("centre", [None, 0.3])
def test_the_training_loss_is_bradley_terry(data, centre):
    keys = {"batch_size": 24, "max_steps": 1, "learning_rate": 1e-12, "center_coefficient": centre}
    _, recorder, folder, config = run(data, **keys)  # the saved weights are the first ones
    pairs = rows_of(config.reward.data, "preferences").train
    chosen, rejected = scores(folder, pairs)
    assert recorder.curve("reward/loss")[0] == pytest.approx(bradley_terry(chosen, rejected, centre or 0.0), abs=LOGGED)


def test_a_preferred_response_scores_higher_after_training(data):
    results, recorder, *_ = run(data, epochs=4, evaluate_every_steps=1, learning_rate=1e-2)
    losses, margins = recorder.curve("reward/validation_loss"), recorder.curve("reward/validation_margin")
    assert losses[0] > 0.5
    assert losses[-1] < 0.1
    assert margins[-1] > 3 > margins[0]
    assert results["accuracy"] == recorder.curve("reward/validation_accuracy")[-1] == 1.0
    assert recorder.curve("reward/accuracy")[-1] == 1.0


def test_the_head_starts_with_deviation_one_over_root_of_width_plus_one(data):
    config = make_config(data, sft={}, reward={})
    folder = RunFolder(data / "run")
    tokenizer = AutoTokenizer.from_pretrained(folder.sft)
    seeds = [config.model_copy(update={"seed": seed}) for seed in range(40)]
    heads = torch.cat([reward._build(seeded, folder, tokenizer).score.weight.flatten() for seeded in seeds])
    assert heads.std().item() == pytest.approx(33**-0.5, rel=0.05)
    assert heads.mean().item() == pytest.approx(0, abs=0.02)


def test_scores_have_mean_0_and_variance_1_on_the_sft_policys_responses(data):
    results, recorder, folder, config = run(data)
    prompts = [pair.prompt for pair in rows_of(config.reward.data, "preferences").train]
    asked, said = normalisation.sample_responses(config, RunFolder(data / "run"), prompts, CPU, Recorder().progress)
    assert len(set(zip(asked, said, strict=True))) > 6
    model = ScalarRewardModel.from_folder(folder)
    normalised, raw = model.score(asked, said), model.raw_score(asked, said)
    assert results["normalisation_samples"] == len(normalised) == 12
    assert normalised.mean() == pytest.approx(0, abs=1e-4)
    assert normalised.std() == pytest.approx(1, abs=1e-4)
    assert (np.argsort(normalised) == np.argsort(raw)).all()
    assert normalised * results["normalisation_std"] + results["normalisation_mean"] == pytest.approx(raw, abs=1e-6)
    assert Normalisation.load(folder).std == results["normalisation_std"]
    assert recorder.curve("reward/normalisation_mean") == [results["normalisation_mean"]]


def test_more_samples_than_prompts_are_further_samples_of_each(data):
    config = make_config(data, sft={}, reward={"normalisation_samples": 5, "normalisation_max_response_tokens": 4})
    prompts = ["item 1: say green", [{"role": "user", "content": "item 1: say green"}], "item 2: say blue"]
    asked, said = normalisation.sample_responses(config, RunFolder(data / "run"), prompts, CPU, Recorder().progress)
    assert [str(prompt) for prompt in asked] == [str(prompts[i]) for i in (1, 2, 1, 2, 1)]  # equal prompts are one
    assert len({said[0], said[2], said[4]}) > 1  # three samples of one prompt
    again = normalisation.sample_responses(config, RunFolder(data / "run"), prompts, CPU, Recorder().progress)
    assert again == (asked, said)


def test_a_share_of_the_samples_is_the_same_in_another_process(data):
    config = make_config(data, sft={}, reward={"normalisation_samples": 5, "normalisation_max_response_tokens": 4})
    prompts = [f"item {i}: say red" for i in range(4)]
    folder = RunFolder(data / "run")
    _, alone = normalisation.sample_responses(config, folder, prompts, CPU, Recorder().progress)
    shares = []
    for number in range(2):
        process = replace(CPU, rank=number, world_size=2)
        shares.append(normalisation.sample_responses(config, folder, prompts, process, Recorder().progress)[1])
    assert shares == [alone[0::2], alone[1::2]]


def test_another_backbone_with_its_own_tokenizer(data):
    results, _, folder, config = run(data, model=OTHER_BACKBONE, epochs=4, learning_rate=1e-2)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert model.config.model_type == "gpt2"
    assert len(AutoTokenizer.from_pretrained(folder)) == 270
    pairs = rows_of(config.reward.data, "preferences").validation
    chosen, rejected = scores(folder, pairs)
    assert results["mean_margin"] == pytest.approx(np.mean(chosen) - np.mean(rejected), abs=1e-5)


def test_same_seed_same_numbers(data):
    first, _, again, other = run(data, seed=1), run(data, seed=2), run(data, seed=1), run(data, seed=2)
    assert first[0] == again[0] != other[0]
    assert first[1].curve("reward/loss") == again[1].curve("reward/loss") != other[1].curve("reward/loss")


@pytest.mark.parametrize("change", [{"microbatch_size": 2}, {"gradient_checkpointing": True}])
def test_how_a_batch_is_computed_does_not_change_the_numbers(data, change):
    whole, other = run(data), run(data, **change)
    for name in ("reward/loss", "reward/gradient_norm", "reward/margin", "reward/max_score", "reward/tokens"):
        assert other[1].curve(name) == pytest.approx(whole[1].curve(name), abs=2e-5)
    assert other[0]["validation_loss"] == pytest.approx(whole[0]["validation_loss"], abs=1e-5)


def test_without_validation_pairs_there_are_no_metrics(data):
    results, *_ = run(data, data={"path": str(data / "preferences.jsonl"), "validation_fraction": 0.0})
    assert results["accuracy"] is None
    assert results["accuracy_interval"] == [None, None]
    assert results["train_pairs"] == 34


def test_scores_that_do_not_differ_are_an_error(data):
    """One token is sampled from each prompt, and the model is told to ignore everything by a head of zeros."""
    config = make_config(data, sft={}, reward={"normalisation_samples": 4, "normalisation_max_response_tokens": 1})
    run(data)
    folder = RunFolder(data / "run")
    model = AutoModelForSequenceClassification.from_pretrained(folder.reward)
    torch.nn.init.zeros_(model.score.weight)
    model.save_pretrained(folder.reward)
    with pytest.raises(RewardError, match="does not tell responses apart"):
        normalisation.normalise(config, folder, ["item 1: say green", "item 2: say blue"], CPU, Recorder().progress)


def test_prompts_that_leave_no_room_for_a_response_are_an_error(data):
    config = make_config(data, sft={}, reward={})
    with pytest.raises(StageError, match=r"no prompt of reward\.data is shorter than the 128 tokens"):
        normalisation.sample_responses(config, RunFolder(data / "run"), ["x" * 400], CPU, Recorder().progress)


def test_what_is_missing_is_named(data, tmp_path):
    with pytest.raises(StageError, match="no section reward"):
        reward.run(make_config(data, sft={}), RunFolder(data / "run"), Recorder(), CPU)
    with pytest.raises(StageError, match="has no model yet: run `rlhf sft` first"):
        reward.run(make_config(data, sft={}, reward={}), RunFolder(tmp_path), Recorder(), CPU)
    with pytest.raises(ConfigError, match=r"reward\.max_tokens 200: the model reads 128 tokens"):
        run(data, max_tokens=200)


def test_dropout_on_the_adapters_input_acts(data):
    (_, plain, *_), (_, dropped, *_) = run(data, lora=True), run(data, lora=0.5)
    losses, others = plain.curve("reward/loss"), dropped.curve("reward/loss")
    assert losses[0] == pytest.approx(others[0], abs=1e-6)  # adapters change nothing at first
    assert losses[1:] != others[1:]


def test_a_training_that_diverges_says_what_to_do(data):
    with pytest.raises(StageError, match=r"never a finite number\. Lower reward\.learning_rate"):
        run(data, learning_rate=1e38, max_gradient_norm=1e30)
