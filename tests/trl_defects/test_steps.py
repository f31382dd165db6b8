"""How many optimizer steps there are, and what the gradient of one is."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ppo_helpers import episode, exact, random_episodes, record_steps, tiny, weights
from torch import Tensor
from trl_defects.stock import (
    EOS,
    ROWS,
    A,
    B,
    C,
    in_trl,
    record_stock_steps,
    script,
    stock_trainer,
    zero_critic,
)  # fmt: skip
from trl_helpers import make_trainer

# By the prompt's last token; lengths from 1 to 6, so that microbatches have unequal numbers of tokens.
RESPONSES = {A: [B, C, 6, 7, A, A], B: [EOS], C: [A, EOS], 6: [B, B, B, EOS], 7: [C, A, EOS]}


def relative_difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    """Norm of the difference of two gradients over the norm of the first."""
    assert first.keys() == second.keys()
    apart = sum(float((first[name] - second[name]).square().sum()) for name in first)
    return (apart / sum(float(grad.square().sum()) for grad in first.values())) ** 0.5


@in_trl
@pytest.mark.parametrize("minibatches", [1, 2, 4])
def test_num_mini_batches_does_nothing_in_trl(tmp_path, minibatches):
    trainer = stock_trainer(
        tmp_path, rows=ROWS * 3, total_episodes=16, per_device_train_batch_size=2, gradient_accumulation_steps=4,
        num_mini_batches=minibatches, response_length=2,
    )  # fmt: skip
    steps = record_stock_steps(trainer)
    trainer.train()
    assert trainer.state.global_step == 2
    assert len(steps) == 2  # not 2 * minibatches


@pytest.mark.parametrize("minibatches", [1, 2, 4])
def test_num_mini_batches_is_the_number_of_steps_here(tmp_path, minibatches):
    trainer = make_trainer(
        tmp_path, tiny(layers=1), episodes=random_episodes(8), total_episodes=16, num_ppo_epochs=1,
        per_device_train_batch_size=2, gradient_accumulation_steps=4, num_mini_batches=minibatches,
    )  # fmt: skip
    steps = record_steps(trainer)
    trainer.train()
    assert len(steps) == 2 * minibatches


@in_trl
def test_the_last_batch_of_a_data_set_is_not_accumulated_in_trl(tmp_path):
    trainer = stock_trainer(
        tmp_path, rows=ROWS, total_episodes=16, per_device_train_batch_size=2, gradient_accumulation_steps=4,
        response_length=2,
    )  # fmt: skip
    steps = record_stock_steps(trainer)
    trainer.train()
    assert len(steps) == 8  # not 2: every microbatch steps, because every batch is the data set's last


def test_the_last_batch_of_a_data_set_is_accumulated_here(tmp_path):
    trainer = make_trainer(
        tmp_path, tiny(layers=1), episodes=random_episodes(8), total_episodes=16, num_ppo_epochs=1,
        per_device_train_batch_size=2, gradient_accumulation_steps=4,
    )  # fmt: skip
    steps = record_steps(trainer)
    trainer.train()
    assert len(steps) == 2


@in_trl
def test_the_gradient_depends_on_the_microbatches_in_trl(tmp_path, monkeypatch):
    script(monkeypatch, RESPONSES, 6)
    gradients = []
    for accumulation in (1, 2, 4, 8):
        trainer = stock_trainer(
            tmp_path, exact(tiny()), ref_model=exact(tiny(seed=1)), value_model=exact(zero_critic()), stop_token="eos",
            rows=[[A], [B], [C], [6], [7], [B, A], [C, B], [A, C]] * 2, per_device_train_batch_size=8 // accumulation,
            gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        monkeypatch.setattr(np.random, "permutation", np.arange)  # the same order of the same rows
        steps = record_stock_steps(trainer)
        trainer.train()
        gradients += steps
    assert len(gradients) == 4
    by_two, by_four, by_eight = (relative_difference(gradients[0], other) for other in gradients[1:])
    assert by_two > 0.01
    assert by_four > 0.1
    assert by_eight > 0.2


def test_the_gradient_does_not_depend_on_the_microbatches_here(tmp_path):
    episodes = [episode([row], ids, 1.0, index=number) for number, (row, ids) in enumerate(RESPONSES.items())]
    gradients = []
    for tokens in (100, 14, 7, 1):  # of a microbatch
        trainer = make_trainer(
            tmp_path, exact(tiny()), ref_model=exact(tiny(seed=1)), episodes=episodes, microbatch_tokens=tokens,
            num_ppo_epochs=1,
        )  # fmt: skip
        steps = record_steps(trainer)
        trainer.train()
        gradients += steps
    assert len(gradients) == 4
    assert max(relative_difference(gradients[0], other) for other in gradients[1:]) < 1e-12


def advantages_in_trl(folder: Path, prompt_rows: list[list[int]]) -> dict[int, Tensor]:
    """Whitened advantages (T,) of each prompt, from a run of one batch."""
    size = len(prompt_rows)
    trainer = stock_trainer(
        folder, ref_model=tiny(seed=1), rows=prompt_rows, stop_token="eos", per_device_train_batch_size=size,
        total_episodes=size,
    )  # fmt: skip
    trainer.train()
    (kept,) = trainer.spy.iterations
    return dict(zip(kept["queries"][:, -1].tolist(), kept["advantages"], strict=True))


@in_trl
def test_each_process_whitens_its_own_share_in_trl(tmp_path, monkeypatch):
    """Nothing is gathered before advantages are whitened: two processes compute what two runs on the halves do.

    That two processes of this project's trainer have one process's advantages, tests/integration/
    test_ppo_two_processes.py shows.
    """
    script(monkeypatch, RESPONSES, 6)
    rows = [[letter] for letter in RESPONSES]
    whole = advantages_in_trl(tmp_path, rows)
    shares = advantages_in_trl(tmp_path, rows[:2]) | advantages_in_trl(tmp_path, rows[2:])
    assert max(float((whole[letter] - shares[letter]).abs().max()) for letter in whole) > 0.1


@in_trl
def test_max_grad_norm_is_ignored_in_trl(tmp_path):
    policy = tiny()
    trainer = stock_trainer(
        tmp_path, policy, optim="sgd", learning_rate=1.0, weight_decay=0.0, max_grad_norm=1e-12, kl_coef=0.0
    )
    before = weights(policy)
    trainer.train()
    assert max(float((weights(policy)[name] - before[name]).abs().max()) for name in before) > 1e-3


def test_max_grad_norm_acts_here(tmp_path):
    policy = tiny()
    trainer = make_trainer(
        tmp_path, policy, episodes=random_episodes(8), optim="sgd", learning_rate=1.0, weight_decay=0.0,
        max_grad_norm=1e-12, num_ppo_epochs=1,
    )  # fmt: skip
    before, steps = weights(policy), record_steps(trainer)
    trainer.train()
    assert len(steps) == 1
    assert max(float((weights(policy)[name] - before[name]).abs().max()) for name in before) < 1e-10


def calls_of_the_first_block(policy: Any) -> list[int]:
    """Return a list that grows with every call of the first block's MLP while gradients are recorded."""
    calls: list[int] = []
    policy.model.layers[0].mlp.register_forward_pre_hook(
        lambda *_: calls.append(1) if torch.is_grad_enabled() else None
    )
    return calls


@in_trl
def test_gradient_checkpointing_recomputes_nothing_in_trl(tmp_path):
    policy = tiny()
    calls = calls_of_the_first_block(policy)
    trainer = stock_trainer(tmp_path, policy, gradient_checkpointing=True)
    trainer.train()
    assert len(calls) == 1  # one forward pass of one microbatch; recomputing would make it two
    assert not policy.is_activation_checkpointing


def test_gradient_checkpointing_recomputes_here(tmp_path):
    policy = tiny()
    calls = calls_of_the_first_block(policy)
    trainer = make_trainer(tmp_path, policy, episodes=random_episodes(8), gradient_checkpointing=True, num_ppo_epochs=1)
    trainer.train()
    assert len(calls) == 2
    assert policy.is_activation_checkpointing
