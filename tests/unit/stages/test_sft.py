"""The SFT stage on a tiny model: what carries loss, what is learnt, which weights are kept, what the folder holds."""

import math

import pytest
import torch
from stage_helpers import CPU, LOGGED, Recorder, make_config, mean_response_loss, rows_of, write, write_demonstrations
from transformers import AutoModelForCausalLM, AutoTokenizer

from reward_models.chat import encode_prompt, render_prompt
from rlhf.errors import ConfigError, DataError, StageError
from rlhf.files.run_folder import RunFolder
from rlhf.stages import sft


@pytest.fixture
def data(tmp_path):
    write_demonstrations(tmp_path / "demonstrations.jsonl")
    return tmp_path


def run(folder, name="run", seed=0, *, lora=False, dtype="float32", **keys):
    config = make_config(folder, sft={"learning_rate": 3e-3, **keys}, lora=lora, dtype=dtype, seed=seed)
    recorder, target = Recorder(), RunFolder(folder / name)
    return sft.run(config, target, recorder, CPU), recorder, target.sft, config


def weights(folder):
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


@pytest.mark.parametrize("lora", [False, True])
def test_only_the_response_and_its_end_carry_loss_and_the_saved_folder_is_what_was_measured(data, lora):
    results, recorder, folder, config = run(data, lora=lora, microbatch_size=4)
    validation = rows_of(config.sft.data, "demonstrations").validation
    assert results["validation_rows"] == len(validation) == 6
    assert results["validation_loss"] == pytest.approx(mean_response_loss(folder, validation), abs=1e-5)
    assert results["perplexity"] == pytest.approx(math.exp(results["validation_loss"]))
    assert recorder.curve("sft/validation_loss")[-1] == results["validation_loss"]
    assert recorder.curve("sft/perplexity")[-1] == results["perplexity"]


def test_the_first_training_loss_is_the_mean_over_all_response_tokens(data):
    _, recorder, _, config = run(data, "whole", batch_size=24, max_steps=1, learning_rate=1e-12)
    train = rows_of(config.sft.data, "demonstrations").train
    untouched = RunFolder(data / "whole").sft  # the rate is so small that the saved weights are the first ones
    assert recorder.curve("sft/loss")[0] == pytest.approx(mean_response_loss(untouched, train), abs=LOGGED)


@pytest.mark.slow
def test_what_is_in_the_prompt_is_not_learnt(data):
    """A word that stands in every prompt is not a likely beginning of a response."""
    *_, folder, _ = run(data, epochs=30, learning_rate=1e-2)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer.encode("User:\n", add_special_tokens=False)])
    item = tokenizer.encode("item", add_special_tokens=False)[0]
    assert model(ids).logits[0, -1].softmax(-1)[item] < 0.1  # "item" follows "User:\n" in all 24 prompts


@pytest.mark.slow
def test_the_policy_learns_to_end_its_response(data):
    *_, folder, _ = run(data, epochs=40, learning_rate=1e-2)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = "item 3: say black"
    ids = torch.tensor([encode_prompt(tokenizer, prompt)])
    answer = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)[
        0, ids.shape[1] :
    ]
    assert answer[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(answer[:-1]) == "black"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert render_prompt(tokenizer, prompt).endswith("Assistant:\n")  # the template is saved too


def test_early_stopping_keeps_the_best_weights(data):
    """Held-out responses are in another language: learning the training rows makes them worse after a while."""
    train_rows = [{"prompt": row["prompt"], "completion": row["completion"]} for row in _rows(data)[:24]]
    others = [{"prompt": row["prompt"], "completion": "QXZ"} for row in _rows(data)[24:]]
    write(data / "demonstrations.jsonl", train_rows + others)
    keys = {"epochs": 40, "learning_rate": 1e-2, "evaluate_every_steps": 2, "early_stopping_patience": 3}
    results, recorder, folder, config = run(data, **keys)
    losses = recorder.curve("sft/validation_loss")
    assert results["validation_loss"] == min(losses) < losses[-1]
    assert results["best_step"] == 2 * (losses.index(min(losses)) + 1)
    assert results["steps"] == results["best_step"] + 2 * 3 < 3 * 40  # stopped, three validations behind the best
    validation = rows_of(config.sft.data, "demonstrations").validation
    assert mean_response_loss(folder, validation) == pytest.approx(min(losses), abs=1e-5)


def test_the_last_weights_are_validated_too(data):
    results, recorder, *_ = run(data, max_steps=5, evaluate_every_steps=2)
    steps = [step for step, metrics in recorder.logged if "sft/validation_loss" in metrics]
    assert steps == [2, 4, 5]
    assert results["steps"] == results["best_step"] == 5


def test_without_validation_rows_the_last_weights_are_saved(data):
    data_keys = {"path": str(data / "demonstrations.jsonl"), "validation_fraction": 0.0}
    results, recorder, folder, _ = run(data, data=data_keys)
    assert results["validation_loss"] is None
    assert results["perplexity"] is None
    assert results["train_rows"] == 30
    assert not recorder.curve("sft/validation_loss")
    assert (folder / "model.safetensors").is_file()


def test_same_seed_same_numbers(data):
    first, again, other = (run(data, name, seed, lora=True) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert first[0] == again[0] != other[0]
    assert first[1].curve("sft/loss") == again[1].curve("sft/loss") != other[1].curve("sft/loss")
    one, two = weights(first[2]), weights(again[2])
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("change", [{"microbatch_size": 1}, {"microbatch_size": 4}, {"gradient_checkpointing": True}])
@pytest.mark.parametrize("lora", [False, True])
def test_how_a_batch_is_computed_does_not_change_the_numbers(data, change, lora):
    whole, other = run(data, "whole", lora=lora), run(data, "other", lora=lora, **change)
    for name in ("sft/loss", "sft/gradient_norm", "sft/tokens"):
        assert other[1].curve(name) == pytest.approx(whole[1].curve(name), abs=1e-5)
    assert other[0]["validation_loss"] == pytest.approx(whole[0]["validation_loss"], abs=1e-5)
    assert other[0]["steps"] == whole[0]["steps"] == 3


def test_the_learning_rate_warms_up_and_decays(data):
    _, recorder, *_ = run(data, max_steps=10, warmup_fraction=0.2, learning_rate=1e-3)
    rates = recorder.curve("sft/learning_rate")
    # Linear: up to the peak within 2 of 10 steps, then down; the rate behind the last step would be 0.
    assert rates == pytest.approx([0.0, 5e-4, *(1e-3 * (10 - k) / 8 for k in range(2, 10))], abs=1e-9)


def test_weight_decay_shrinks_weights(data):
    plain, decayed = (run(data, name, weight_decay=decay)[2] for name, decay in (("plain", 0.0), ("decayed", 10.0)))
    name = "model.layers.0.self_attn.q_proj.weight"
    assert weights(decayed)[name].norm() < 0.98 * weights(plain)[name].norm()


def test_bfloat16_computes_in_bfloat16_over_float32_masters(data):
    full, half = run(data, "full"), run(data, "half", dtype="bfloat16")
    assert half[0]["validation_loss"] != full[0]["validation_loss"]
    assert half[0]["validation_loss"] == pytest.approx(full[0]["validation_loss"], abs=0.02)
    assert weights(half[2])["lm_head.weight"].dtype == torch.float32
    assert torch.any(weights(half[2])["lm_head.weight"] != weights(half[2])["lm_head.weight"].bfloat16().float())


def test_a_row_that_is_too_long_is_named_or_counted_and_never_cut(data, caplog, capsys):
    rows = [*_rows(data), {"prompt": "tell me", "completion": "very " * 60}]
    write(data / "demonstrations.jsonl", rows)
    with pytest.raises(DataError, match=r"line 31, column completion: \d+ tokens with its prompt, 64 are allowed"):
        run(data, max_tokens=64)
    keys = {"path": str(data / "demonstrations.jsonl"), "validation_fraction": 0.2, "on_bad_row": "skip"}
    results, *_ = run(data, max_tokens=64, data=keys, max_steps=1)
    assert "sft: 24 rows for training, 6 held out for validation, 1 left out (1 too_long)\n" in capsys.readouterr().out
    assert "the first row that was left out: " in caplog.text
    assert results["skipped_rows"] == {"too_long": 1}
    assert results["train_rows"] == 24


def test_rows_cannot_be_longer_than_the_model_reads(data):
    with pytest.raises(ConfigError, match=r"sft\.max_tokens 129: the model reads 128 tokens"):
        run(data, max_tokens=129)


def test_dropout_on_the_adapters_input_acts(data):
    (_, plain, *_), (_, dropped, *_) = run(data, "plain", lora=True), run(data, "dropout", lora=0.5)
    losses, others = plain.curve("sft/loss"), dropped.curve("sft/loss")
    assert losses[0] == pytest.approx(others[0], abs=1e-6)  # adapters change nothing at first
    assert losses[1:] != others[1:]


def test_a_training_that_diverges_says_what_to_do(data):
    with pytest.raises(StageError, match=r"never a finite number\. Lower sft\.learning_rate"):
        run(data, learning_rate=1e38, max_gradient_norm=1e30)


def test_a_config_without_the_section_is_refused(data):
    config = make_config(data, reward={})
    with pytest.raises(StageError, match="no section sft"):
        sft.run(config, RunFolder(data / "run"), Recorder(), CPU)


def _rows(folder):
    import json

    return [json.loads(line) for line in (folder / "demonstrations.jsonl").read_text().splitlines()]
