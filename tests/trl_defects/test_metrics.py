"""What the logged numbers are means of: of all positions, padding included, or of the response's tokens."""

import dataclasses
from typing import Any

import pytest
import torch
from ppo_helpers import advantaged, exact, random_episodes, tiny
from torch import Tensor, nn
from trl_defects.stock import EOS, A, B, C, in_trl, script, stock_trainer, zero_critic
from trl_helpers import make_trainer

RESPONSES = {A: [B, EOS], B: [A, C, EOS], C: [C, EOS]}
SECOND_EPOCH = (1, 0, 0)  # epoch, minibatch, microbatch: there the policy has moved


def stock_statistics(folder: Any, monkeypatch: pytest.MonkeyPatch, width: int) -> dict[str, Tensor]:
    """TRL's trainer on the same responses, with `width` positions for each."""
    script(monkeypatch, RESPONSES, width)
    trainer = stock_trainer(
        folder, exact(tiny()), value_model=exact(zero_critic()), rows=[[letter] for letter in RESPONSES],
        per_device_train_batch_size=3, total_episodes=3, response_length=width, stop_token="eos", kl_coef=0.0,
        num_ppo_epochs=2, learning_rate=1e-2,
    )  # fmt: skip
    trainer.train()
    (kept,) = trainer.spy.iterations
    return {name: kept[f"{name}_stats"][SECOND_EPOCH] for name in ("approxkl", "ratio", "entropy", "pg_loss")}


@in_trl
def test_padding_dilutes_approx_kl_ratio_and_entropy_in_trl(tmp_path, monkeypatch):
    narrow, wide = (stock_statistics(tmp_path, monkeypatch, width) for width in (4, 16))
    assert wide["pg_loss"] == pytest.approx(float(narrow["pg_loss"]), rel=1e-4)  # the update itself is the same
    assert narrow["approxkl"] > 1e-3
    assert wide["approxkl"] == pytest.approx(float(narrow["approxkl"]) / 4, rel=1e-4)
    assert abs(narrow["ratio"] - 1) > 1e-2
    assert wide["ratio"] - 1 == pytest.approx(float(narrow["ratio"] - 1) / 4, rel=1e-3)
    assert abs(wide["entropy"] - narrow["entropy"]) > 0.01


def test_padding_changes_no_metric_here(tmp_path):
    found = []
    for extra in (0, 12):
        trainer = make_trainer(
            tmp_path, tiny(), episodes=random_episodes(8), num_ppo_epochs=2, learning_rate=1e-2, kl_coef=0.0
        )
        batch = advantaged(trainer.ppo)
        shape = batch.mask.shape
        wider = {
            field.name: nn.functional.pad(value, (0, extra))
            for field in dataclasses.fields(batch)
            if (value := getattr(batch, field.name)).shape == shape
        }
        assert {"mask", "logprobs", "advantages"} < wider.keys()
        found.append(trainer.ppo.update(dataclasses.replace(batch, **wider), 0).means())
    assert found[0]["approx_kl"] > 1e-3
    assert found[0] == found[1]


@in_trl
def test_averages_are_diluted_with_zeros_in_trl(tmp_path):
    """4 minibatches of 1 microbatch each; the table of statistics has room for 4 microbatches, and 12 of 16 stay 0."""
    trainer = stock_trainer(
        tmp_path, learning_rate=0.0, per_device_train_batch_size=2, gradient_accumulation_steps=4, num_mini_batches=4
    )
    trainer.train()
    (logged,) = trainer.state.log_history
    assert logged["val/ratio"] == pytest.approx(0.25, abs=1e-4)  # of a policy that did not move
    assert (trainer.spy.iterations[0]["ratio_stats"] == 0).sum() == 12


def test_averages_are_those_of_the_tokens_here(tmp_path):
    seen: list[Any] = []
    trainer = make_trainer(
        tmp_path, tiny(), episodes=random_episodes(8), learning_rate=1e-12, per_device_train_batch_size=2,
        gradient_accumulation_steps=4, num_mini_batches=4, num_ppo_epochs=1, on_iteration=seen.append,
    )  # fmt: skip
    trainer.train()
    assert seen[0].metrics["ppo/optimizer_steps"] == 4
    assert seen[0].metrics["ppo/ratio"] == pytest.approx(1, abs=1e-6)
    assert torch.isfinite(torch.tensor(list(seen[0].metrics.values()))).all()
