"""The SFT loss against one row at a time in plain transformers: values, gradients, and what must not change them."""

import pytest
import torch
from stage_helpers import CPU, Recorder, gradients, make_config, tiny_model, write_demonstrations
from torch.nn.functional import cross_entropy

from rlhf.files.run_folder import RunFolder
from rlhf.policies.decoder_only import DecoderOnly
from rlhf.stages import sft, sft_trainer

FAMILIES = ["llama", "gpt2", "opt"]
ATOL = {"llama": 1e-6, "gpt2": 1e-10, "opt": 1e-10}  # norms of a Llama are float32 in any case
PROMPT = [5, 6, 7, 8]
ROWS = [  # prompt and response; two rows share a prompt, and one prompt is the beginning of another row's
    (PROMPT, [9, 10, 2]),
    (PROMPT, [9, 11, 12, 13, 14, 2]),
    ([5, 6], [7, 2]),
    ([20, 0, 21, 22, 23, 24, 25], [0, 0, 2]),  # token 0 is padding elsewhere
    ([30], [31, 32, 33, 34, 35, 36, 37, 38, 39, 2]),
]


def as_dicts(rows):
    return [{"input_ids": p + r, "labels": [-100] * len(p) + r} for p, r in rows]


def batch_of(rows):
    return sft_trainer.collate(as_dicts(rows))


def logprobs(model, batch, **keys):
    return sft_trainer.read_responses(DecoderOnly(model, CPU), *sft_trainer.response_tokens(batch), **keys)


def oracle(model, rows):
    """-log p of each response token of each row, by the model's own forward pass on that row alone."""
    losses = []
    for prompt, response in rows:
        logits = type(model).forward(model, input_ids=torch.tensor([prompt + response])).logits[0]
        losses.append(cross_entropy(logits[len(prompt) - 1 : -1], torch.tensor(response), reduction="none"))
    return losses


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_all_gradients_are_those_of_single_rows(family, lora):
    model = tiny_model(family, lora=lora)
    expected = torch.cat(oracle(model, ROWS))
    measured = -logprobs(model, batch_of(ROWS))[0]
    torch.testing.assert_close(measured, expected, rtol=0, atol=ATOL[family])
    ours, theirs = gradients(model, measured.mean()), gradients(model, torch.cat(oracle(model, ROWS)).mean())
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=0, atol=ATOL[family], msg=name)
    assert sum(bool(gradient.any()) for gradient in ours.values()) >= 0.9 * len(ours)


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_order_cannot_change_the_loss(family):
    model, batch = tiny_model(family), batch_of(ROWS)
    wide = {
        "input_ids": torch.nn.functional.pad(batch["input_ids"], (0, 9), value=17),
        "labels": torch.nn.functional.pad(batch["labels"], (0, 9), value=-100),
        "lengths": batch["lengths"],
    }
    plain = logprobs(model, batch)
    torch.testing.assert_close(logprobs(model, wide), plain, rtol=0, atol=1e-8)
    order = [3, 1, 4, 0, 2]
    mixed = logprobs(model, batch_of([ROWS[i] for i in order]))[0].split([len(ROWS[i][1]) for i in order])
    torch.testing.assert_close(torch.cat([mixed[order.index(i)] for i in range(5)]), plain[0], rtol=0, atol=1e-8)


def test_no_logits_are_made_where_nothing_is_predicted(monkeypatch):
    model, seen = tiny_model("llama"), []
    original = DecoderOnly.logprobs
    monkeypatch.setattr(DecoderOnly, "logprobs", lambda self, s, t: seen.append(s.shape) or original(self, s, t))
    monkeypatch.setattr(model.lm_head, "forward", lambda *_: pytest.fail("the output layer is called as a module"))
    logprobs(model, batch_of(ROWS)).sum().backward()
    assert seen == [(sum(len(response) for _, response in ROWS), 16)]
    assert model.lm_head.weight.grad is not None


def test_a_prompt_is_read_once_for_all_rows_that_begin_with_it():
    rows, *_ = sft_trainer.response_tokens(batch_of(ROWS[:2]))
    assert len(rows.input_ids) == len(PROMPT) + 3 + 6 - 1  # both responses begin with 9, too


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_of_the_adapters_acts_in_training_alone(family):
    model, batch = tiny_model(family, lora=True, dropout=0.5), batch_of(ROWS)
    first, again = logprobs(model, batch), logprobs(model, batch)
    assert not torch.allclose(first, again, atol=1e-3)
    model.eval()
    torch.testing.assert_close(-logprobs(model, batch)[0], torch.cat(oracle(model, ROWS)), rtol=0, atol=ATOL[family])


@pytest.fixture
def trainer(tmp_path, request):
    write_demonstrations(tmp_path / "demonstrations.jsonl")
    lora = getattr(request, "param", False)
    config = make_config(tmp_path, sft={"max_steps": 2, "microbatch_size": 4}, lora=lora)
    made = []

    class Kept(sft.SFTTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sft, "SFTTrainer", Kept)
        sft.run(config, RunFolder(tmp_path / "run"), Recorder(), CPU)
    return made[0]


def test_validation_measures_each_row(trainer):
    model = tiny_model("llama").eval()
    trainer.reading.args[0].model = model
    measured = trainer.measure(trainer.reading, batch_of(ROWS))
    for row, (prompt, response) in enumerate(ROWS):
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        p, wanted = logits.softmax(-1), torch.tensor(response)
        entropy = -(p * p.log()).sum().item()
        loss = -p[range(len(response)), wanted].log().sum().item()
        first = sum(int(logits[i].argmax() == token) for i, token in enumerate(response))
        assert measured[row].tolist() == pytest.approx([loss, entropy, first, len(response)], abs=1e-6)
    sums = measured.sum(0)
    assert trainer.summarise(measured)["eval_entropy"] == pytest.approx((sums[1] / sums[3]).item(), abs=1e-12)


def test_every_microbatch_is_its_part_of_the_mean_over_the_step(trainer):
    model = tiny_model("llama")
    trainer.reading.args[0].model = model
    tokens = torch.tensor(sum(len(response) for _, response in ROWS))
    whole = gradients(model, trainer.compute_loss(trainer.reading, batch_of(ROWS), num_items_in_batch=tokens))
    for size in (1, 2, 4):
        parts = [batch_of(ROWS[i : i + size]) for i in range(0, len(ROWS), size)]
        losses = [trainer.compute_loss(trainer.reading, part, num_items_in_batch=tokens) for part in parts]
        torch.testing.assert_close(sum(losses), torch.cat(oracle(model, ROWS)).mean(), rtol=0, atol=1e-6)
        for name, gradient in gradients(model, sum(losses)).items():
            torch.testing.assert_close(gradient, whole[name], rtol=0, atol=1e-8, msg=name)


@pytest.mark.parametrize("trainer", [False, True], indirect=True, ids=["all weights", "lora"])
def test_behind_the_training_the_model_is_called_as_before(trainer):
    ids = torch.tensor([[1, 2, 3]])
    assert trainer.model(input_ids=ids).logits.shape[:2] == (1, 3)
