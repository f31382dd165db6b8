"""The Trainer's logs arrive under our names, and only our bar is shown."""

import io
import math

import pytest
import torch
from rich.console import Console
from transformers import Trainer, TrainingArguments

from rlhf.tracking.callback import TrackerCallback, attach, stage_metrics
from rlhf.tracking.metrics import METRICS, find
from rlhf.tracking.progress import StageProgress


class Recorder:
    """Stands for the tracker."""

    def __init__(self):
        self.logged = []

    def log(self, metrics, step):
        self.logged.append((step, dict(metrics)))


class Slope(torch.nn.Module):
    """y = w x, with the Trainer's calling convention."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, labels):
        return {"loss": ((self.weight * x - labels) ** 2).mean()}


@pytest.fixture
def trained(tmp_path, capsys):
    """A Trainer that has taken six steps and validated at every third."""
    rows = [{"x": torch.tensor(float(i)), "labels": torch.tensor(2.0 * i)} for i in range(4)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=6,
        per_device_train_batch_size=2,
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=3,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        learning_rate=0.1,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=Slope(), args=arguments, train_dataset=rows, eval_dataset=rows)
    tracker = Recorder()
    console = Console(file=io.StringIO(), force_terminal=False, width=200)
    callback = attach(trainer, tracker, "sft", StageProgress("sft", console=console, enabled=True))
    trainer.train()
    return trainer, tracker, callback, console.file.getvalue(), capsys.readouterr()


def test_every_logged_number_arrives_at_its_step(trained):
    trainer, tracker, _, _, _ = trained
    expected = [(entry["step"], entry) for entry in trainer.state.log_history]
    losses = [(step, metrics["sft/loss"]) for step, metrics in tracker.logged if "sft/loss" in metrics]
    assert losses == [(step, entry["loss"]) for step, entry in expected if "loss" in entry]
    validation = [(step, m["sft/validation_loss"]) for step, m in tracker.logged if "sft/validation_loss" in m]
    assert validation == [(step, entry["eval_loss"]) for step, entry in expected if "eval_loss" in entry]
    assert [step for step, _ in validation] == [3, 6]
    assert any("sft/gradient_norm" in metrics for _, metrics in tracker.logged)


def test_the_bar_shows_each_step_and_nothing_else_is_printed(trained):
    trainer, _, callback, shown, printed = trained
    assert isinstance(callback, TrackerCallback)
    assert [line.split()[1] for line in shown.splitlines()] == ["1/6", "2/6", "3/6", "4/6", "5/6", "6/6"]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert [line.split("loss ")[1].split()[0] for line in shown.splitlines()] == [f"{loss:.3g}" for loss in losses]
    assert (printed.out, printed.err) == ("", "")


def test_known_names_are_ours_and_others_keep_theirs_under_a_prefix():
    logs = {
        "loss": 1.0,
        "grad_norm": 2.0,
        "eval_accuracy": 0.75,
        "eval_mean_score": 0.5,
        "train_runtime": 9.0,
        "eval_runtime": 3.0,
        "total_flos": 5.0,
        "eval_steps_per_second": 4.0,
        "epoch": 1,
        "note": "text",
    }
    assert stage_metrics("reward", logs) == {
        "reward/loss": 1.0,
        "reward/gradient_norm": 2.0,
        "reward/validation_accuracy": 0.75,
        "reward/validation_mean_score": 0.5,
        "reward/seconds/train": 9.0,
        "reward/seconds/validation": 3.0,
        "reward/trainer/total_flos": 5.0,
        "reward/trainer/eval_steps_per_second": 4.0,
        "reward/epoch": 1.0,
    }


def test_names_that_are_ours_already_stay_as_they_are():
    logs = {"ppo/score": 0.5, "ppo/components/polite": 1.0, "epoch": 2.0, "loss": 3.0}
    assert stage_metrics("ppo", logs) == {
        "ppo/score": 0.5,
        "ppo/components/polite": 1.0,
        "ppo/epoch": 2.0,
        "ppo/trainer/loss": 3.0,
    }


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_whatever_is_logged_is_documented(stage):
    for name in stage_metrics(
        stage, dict.fromkeys(["loss", "eval_loss", "num_tokens", "entropy", "margin", "x/y"], 1.0)
    ):
        assert name in METRICS or (name.startswith(f"{stage}/trainer/") and find(name) is not None)


def test_perplexity_is_exp_of_the_validation_loss_of_sft_only():
    assert stage_metrics("sft", {"eval_loss": 2.0})["sft/perplexity"] == pytest.approx(7.38905609893065, abs=1e-12)
    assert stage_metrics("sft", {"eval_loss": 1000.0})["sft/perplexity"] == math.inf
    assert "sft/perplexity" not in stage_metrics("sft", {"loss": 2.0})
    assert not any("perplexity" in name for name in stage_metrics("reward", {"eval_loss": 2.0}))
