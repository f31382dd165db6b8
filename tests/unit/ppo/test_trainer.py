"""Whole runs of the trainer: the schedule, resuming, the seed, and what is reported and saved."""

import json
import math
import random

import numpy as np
import pytest
import torch
from ppo_helpers import letters_tokenizer, make_ppo, prompts, random_episodes, sgd, tiny, weights
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification

from rlhf.errors import ModelError, StageError
from rlhf.ppo import checkpoint

ROWS = [[3], [4, 5, 6], [5, 5], [6, 7, 3, 3], [7]]


def count_a(prompts, completions, completion_ids, **_):
    return [float(ids.count(3)) - 0.1 * len(ids) for ids in completion_ids]


def critic():
    model = LlamaForSequenceClassification(tiny(layers=1, seed=1, num_labels=1).config)
    torch.nn.init.normal_(model.score.weight, generator=torch.Generator().manual_seed(3))
    return model


def run_trainer(folder, *, iterations=4, seed=0, separate=True, resume=None, save_every=None, **options):
    """A run with everything that has state: two models, Adam, a schedule, an adaptive coefficient."""
    torch.manual_seed(99)
    seen = []
    models = {"critic_model": critic()} if separate else {}

    def look(iteration):
        seen.append(iteration)
        if save_every and not (iteration.number + 1) % save_every:
            checkpoint.save(trainer, folder / f"checkpoint-{iteration.number + 1}")

    trainer = make_ppo(tiny(layers=1, seed=5), reference=tiny(layers=1, seed=6), reward=count_a,
        dataset=prompts(ROWS), total_episodes=8 * iterations, max_response_tokens=6, minibatches=2,
        epochs=2, learning_rate=1e-2, kl_controller="adaptive", kl_target=0.5, kl_horizon=50, kl_coefficient=0.2,
        seed=seed, on_iteration=look, **models, **options,
    )  # fmt: skip
    if resume is not None:
        checkpoint.load(trainer, resume)
    trainer.train()
    return trainer, seen


def numbers(iterations):
    """The metrics without what depends on the clock."""
    return [
        {name: value for name, value in i.metrics.items() if "seconds" not in name and "per_second" not in name}
        for i in iterations
    ]


def state_of(trainer):
    return {
        "weights": weights(trainer.actor_critic),
        "optimizer": trainer.optimizer.state_dict()["state"],
        "rates": [group["lr"] for group in trainer.optimizer.param_groups],
        "coefficient": trainer.kl_controller.coefficient,
        "schedule": trainer.schedule.get_last_lr(),
        "progress": vars(trainer.progress),
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
    }


def assert_same(first, second, where=""):
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            assert_same(first[key], second[key], f"{where}.{key}")
    else:
        assert first == second, where


@pytest.mark.parametrize("separate", [True, False])
def test_oracle_27_resumed_equals_uninterrupted_to_the_bit(tmp_path, separate):
    saving = {"save_every": 2}
    whole, seen = run_trainer(tmp_path / "whole", separate=separate, **saving)
    expected = state_of(whole)
    for pollute in (random.random, np.random.random, lambda: torch.rand(3)):
        pollute()
    resumed, later = run_trainer(
        tmp_path / "resumed", separate=separate, resume=tmp_path / "whole" / "checkpoint-2", **saving
    )
    assert [i.number for i in later] == [2, 3]
    assert [e.token_ids for i in later for e in i.episodes] == [e.token_ids for i in seen[2:] for e in i.episodes]
    assert numbers(later) == numbers(seen[2:])
    assert_same(state_of(resumed), expected)
    assert whole.kl_controller.coefficient != 0.2


def test_oracle_27_an_unfinished_checkpoint_is_refused(tmp_path):
    run_trainer(tmp_path, iterations=2, save_every=2)
    (tmp_path / "checkpoint-2" / "progress.json").unlink()
    with pytest.raises(StageError, match=r"checkpoint-2 is no finished checkpoint: progress\.json is missing"):
        run_trainer(tmp_path, iterations=4, resume=tmp_path / "checkpoint-2")


def test_oracle_28_the_same_seed_gives_the_same_bits(tmp_path):
    runs = []
    for seed in (0, 0, 1):
        np.random.seed(len(runs))
        random.seed(len(runs))
        torch.rand(5 + len(runs))
        trainer, seen = run_trainer(tmp_path / str(len(runs)), iterations=2, seed=seed)
        runs.append((state_of(trainer), numbers(seen), [e.token_ids for i in seen for e in i.episodes]))
    assert_same(runs[0][0], runs[1][0])
    assert runs[0][1:] == runs[1][1:]
    assert runs[0][2] != runs[2][2]
    # Prompts are fewer than an iteration's episodes: they are used again, with other responses.
    first = [tuple(ids) for ids in runs[0][2][:8]]
    assert len(set(first)) > len(ROWS)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ({"warmup_iterations": 2}, [0, 1 / 2, 1, 3 / 4, 2 / 4, 1 / 4]),
        ({"scheduler": "constant"}, [1] * 6),
    ],
)
def test_oracle_25_the_learning_rate_falls_to_exactly_0(tmp_path, options, expected):
    seen = []
    trainer = make_ppo(tiny(layers=1), episodes=random_episodes(4), total_episodes=24, optimizer=sgd(0.5, 2.0),
        epochs=1, on_iteration=seen.append, **options,
    )  # fmt: skip
    used = []
    trainer.optimizer.optimizer.register_step_pre_hook(
        lambda optimizer, *_: used.append(sorted({group["lr"] for group in optimizer.param_groups}))
    )
    trainer.train()
    rates = [sorted({0.5 * factor, 2.0 * factor}) for factor in expected]
    for got, wanted in zip(used, rates, strict=True):
        assert got == pytest.approx(wanted, rel=1e-12)
    assert [i.metrics["ppo/learning_rate"] for i in seen] == pytest.approx([0.5 * f for f in expected], rel=1e-12)
    if options.get("scheduler") != "constant":
        assert all(group["lr"] == 0.0 for group in trainer.optimizer.param_groups)


def test_metrics_are_those_of_the_episodes(tmp_path):
    _, seen = run_trainer(tmp_path, iterations=2)
    for iteration in seen:
        episodes, metrics, batch = iteration.episodes, iteration.metrics, iteration.batch
        scores = [count_a(0, 0, [[t for t, own in zip(e.token_ids, e.response_mask, strict=True) if own]])[0]
                  for e in episodes]  # fmt: skip
        assert metrics["ppo/score"] == pytest.approx(sum(scores) / 8, abs=1e-6)
        assert metrics["ppo/response_tokens"] == pytest.approx(sum(e.response_length for e in episodes) / 8, abs=1e-6)
        assert metrics["ppo/stopped_share"] == sum(e.stop_reason == "eos" for e in episodes) / 8
        assert metrics["ppo/kl"] == pytest.approx(float((batch.logprobs - batch.ref_logprobs)[batch.mask].sum()) / 8)
        assert metrics["ppo/kl_penalty"] == pytest.approx(metrics["ppo/kl_coefficient"] * metrics["ppo/kl"], rel=1e-12)
        assert metrics["ppo/optimizer_steps"] == 4
        assert metrics["ppo/components/count_a"] == pytest.approx(metrics["ppo/score"], abs=1e-6)
        assert metrics["ppo/sampler_logprob_gap"] < 1e-5
        assert all(math.isfinite(value) for value in metrics.values())
    before, after = (i.metrics["ppo/kl_coefficient"] for i in seen)
    error = min(max(seen[0].metrics["ppo/kl"] / 0.5 - 1, -0.2), 0.2)
    assert after == pytest.approx(before * (1 + error * 8 / 50), rel=1e-9)


def test_saved_models_load_and_answer_alike(tmp_path):
    trainer, _ = run_trainer(tmp_path, iterations=2)
    checkpoint.save_models(trainer, tmp_path, letters_tokenizer())
    ids = torch.tensor([[3, 4, 5]])
    with torch.no_grad():
        policy = AutoModelForCausalLM.from_pretrained(tmp_path)
        # The trainer's copy attends by other products: the weights are the same to the bit, the logits to rounding.
        torch.testing.assert_close(
            policy(ids).logits, trainer.actor_critic.policy.eval()(ids).logits, rtol=0, atol=1e-5
        )
        for name, weight in trainer.actor_critic.policy.state_dict().items():
            assert torch.equal(policy.state_dict()[name], weight)
        value = LlamaForSequenceClassification.from_pretrained(tmp_path / "critic")
        torch.testing.assert_close(
            value(ids).logits, trainer.actor_critic.value_model.eval()(ids).logits, rtol=0, atol=1e-5
        )
    shared, _ = run_trainer(tmp_path / "shared", iterations=2, separate=False)
    checkpoint.save_models(shared, tmp_path / "shared", letters_tokenizer())
    head = torch.load(tmp_path / "shared" / "critic" / "value_head.pt")
    assert_same(head, dict(shared.actor_critic.value_model.state_dict()))


def test_progress_is_written_last_and_readable(tmp_path):
    run_trainer(tmp_path, iterations=2, save_every=1)
    progress = json.loads((tmp_path / "checkpoint-1" / "progress.json").read_text())
    assert (progress["iteration"], progress["episodes"]) == (1, 8)


def test_models_that_cannot_be_are_refused(tmp_path):
    policy = tiny()
    with pytest.raises(ModelError, match="same object"):
        make_ppo(policy, reference=policy, episodes=random_episodes(2))
    with pytest.raises(ModelError, match="needs a critic"):
        make_ppo(policy, critic_model=None, critic="separate", episodes=random_episodes(2))
