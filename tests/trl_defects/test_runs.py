"""Whole runs: resuming, what is saved, the seed, data sets smaller than a batch, a single token, and the reward."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ppo_helpers import episode, prompts, tiny, weights
from safetensors import safe_open
from trl_defects.stock import ROWS, A, B, FixedReward, in_trl, script, stock_trainer, zero_critic
from trl_helpers import make_trainer

SAVING = {"save_strategy": "steps", "save_steps": 1}


def count(prompts: Any, completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def trainer_here(folder: Path, **options: Any) -> Any:
    """This project's trainer, on the prompts that TRL's gets."""
    defaults = {"reward_model": count, "train_dataset": prompts(ROWS), "response_length": 6, "num_ppo_epochs": 1}
    return make_trainer(folder, tiny(), **{**defaults, **options})


def saved_weights(folder: Path) -> list[str]:
    """Names of all weights in all of a folder's safetensors files, each behind its file's folder."""
    names = []
    for path in sorted(folder.rglob("*.safetensors")):
        with safe_open(path, "pt") as file:
            names += [f"{path.parent.relative_to(folder).as_posix()}/{key}" for key in file.keys()]
    return names


@in_trl
def test_a_run_cannot_be_resumed_in_trl(tmp_path):
    stock_trainer(tmp_path, **SAVING).train()
    checkpoint = str(tmp_path / "checkpoint-1")
    trainer = stock_trainer(tmp_path, total_episodes=16, resume_from_checkpoint=checkpoint)
    with pytest.raises(TypeError, match="unexpected keyword argument 'resume_from_checkpoint'"):
        trainer.train(resume_from_checkpoint=checkpoint)
    trainer.train()  # the option of the same name is accepted, and ignored
    assert [entry["episode"] for entry in trainer.state.log_history] == [8, 16]


def test_a_run_is_resumed_here(tmp_path):
    first = trainer_here(tmp_path, total_episodes=16, **SAVING)
    first.train()
    seen: list[Any] = []
    second = trainer_here(tmp_path, total_episodes=16, on_iteration=seen.append)
    second.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert [iteration.number for iteration in seen] == [1]
    ends = [weights(trainer.actor_critic) for trainer in (first, second)]
    assert all(torch.equal(weight, ends[1][name]) for name, weight in ends[0].items())


@in_trl
def test_the_critic_is_never_saved_in_trl(tmp_path):
    trainer = stock_trainer(tmp_path, **SAVING)
    trainer.train()
    trainer.save_model()
    names = saved_weights(tmp_path)
    assert "./lm_head.weight" in names
    assert "checkpoint-1/lm_head.weight" in names
    assert not [name for name in names if "score" in name or "value" in name]
    assert not list(tmp_path.rglob("pytorch_model*.bin"))


def test_the_critic_is_saved_here(tmp_path):
    trainer = trainer_here(tmp_path, value_model=zero_critic(), total_episodes=8, **SAVING)
    trainer.train()
    trainer.save_model()
    names = saved_weights(tmp_path)
    assert {"./lm_head.weight", "critic/score.weight", "checkpoint-1/critic/score.weight"} < set(names)


def end_of_run(make: Any, folder: Path, numpy_seed: int) -> dict[str, torch.Tensor]:
    """Weights after an iteration of four minibatches, with numpy's global generator somewhere else."""
    np.random.seed(numpy_seed)
    trainer = make(
        folder,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        num_mini_batches=4,
        total_episodes=8,
        learning_rate=1e-2,
        seed=5,
    )
    trainer.train()
    return weights(trainer.policy_model)


@in_trl
def test_the_seed_does_not_reach_numpy_in_trl(tmp_path):
    first, again, other = (end_of_run(stock_trainer, tmp_path, seed) for seed in (0, 0, 1))
    assert all(torch.equal(weight, again[name]) for name, weight in first.items())
    assert any(not torch.allclose(weight, other[name], atol=1e-4) for name, weight in first.items())


def test_the_seed_governs_the_whole_run_here(tmp_path):
    first, other = (end_of_run(trainer_here, tmp_path, seed) for seed in (0, 1))
    assert all(torch.equal(weight, other[name]) for name, weight in first.items())


class LoopsForEver(Exception):
    """A data loader was gone through too often."""


class CountedPasses:
    """A data loader that gives up after a thousand passes."""

    def __init__(self, loader: Any) -> None:
        self.loader, self.passes = loader, 0

    def __iter__(self) -> Iterator[Any]:
        self.passes += 1
        if self.passes > 1000:
            raise LoopsForEver
        return iter(self.loader)


@in_trl
def test_a_data_set_smaller_than_the_batch_loops_for_ever_in_trl(tmp_path):
    trainer = stock_trainer(tmp_path, rows=ROWS[:3])
    trainer.dataloader = CountedPasses(trainer.dataloader)
    with pytest.raises(LoopsForEver):
        trainer.train()


def test_a_data_set_smaller_than_the_batch_is_used_several_times_here(tmp_path):
    seen: list[Any] = []
    trainer_here(tmp_path, train_dataset=prompts(ROWS[:3]), total_episodes=8, on_iteration=seen.append).train()
    assert sorted(e.index for e in seen[0].episodes) in ([0, 0, 0, 1, 1, 1, 2, 2], [0, 0, 0, 1, 1, 2, 2, 2],
                                                         [0, 0, 1, 1, 1, 2, 2, 2])  # fmt: skip


@in_trl
def test_a_single_token_makes_the_weights_nan_in_trl(tmp_path, monkeypatch):
    script(monkeypatch, {A: [B]}, 1)
    policy = tiny()
    stock_trainer(
        tmp_path, policy, rows=[[A]], per_device_train_batch_size=1, total_episodes=1, response_length=1
    ).train()
    assert policy.lm_head.weight.isnan().all()


def test_a_single_token_leaves_the_weights_finite_here(tmp_path):
    seen: list[Any] = []
    trainer = make_trainer(
        tmp_path, tiny(), episodes=[episode([A], [B], 1.0)], num_ppo_epochs=1, on_iteration=seen.append
    )
    trainer.train()
    assert seen[0].metrics["ppo/skipped_steps"] == 0
    assert all(math.isfinite(value) for value in seen[0].metrics.values())
    assert all(weight.isfinite().all() for weight in weights(trainer.actor_critic).values())


@in_trl
def test_the_reward_must_be_a_module_that_reads_the_policys_tokens_in_trl(tmp_path):
    with pytest.raises(AttributeError, match="'function' object has no attribute"):
        stock_trainer(tmp_path, reward_model=count)
    reward = FixedReward()
    trainer = stock_trainer(tmp_path, reward_model=reward)
    trainer.train()
    (kept,) = trainer.spy.iterations
    pad = trainer.processing_class.pad_token_id
    assert reward.seen == [[t for t in row if t != pad] for row in kept["query_responses"].tolist()]


def test_the_reward_may_be_a_function_of_text_here(tmp_path):
    seen: list[tuple[str, str]] = []

    def reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        seen.extend(zip(prompts, completions, strict=True))
        return [float(len(text)) for text in completions]

    episodes = trainer_here(tmp_path, reward_model=reward).ppo.rollout(0)
    assert [e.score for e in episodes] == [float(len(text)) for _, text in seen]
    assert {prompt for prompt, _ in seen} == {"a", "b c d", "c c", "d e a a", "e", "a b", "b b b", "d"}
