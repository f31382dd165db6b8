"""The update: one optimizer step a minibatch, whose gradient no cut into microbatches and no padding can change."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from ppo_helpers import advantaged, episode, exact, make_ppo, random_episodes, record_steps, sgd, tiny, weights
from transformers import LlamaForSequenceClassification

from rlhf.packing.microbatch import microbatches
from rlhf.policies.checkpointing import recompute_activations
from rlhf.ppo.update import minibatch_rows

EPISODES = random_episodes(8)


def separate_critic():
    critic = LlamaForSequenceClassification(tiny(layers=1, num_labels=1).config)
    torch.nn.init.normal_(critic.score.weight, generator=torch.Generator().manual_seed(3))
    return exact(critic)


def trainer_and_batch(folder, *, separate=False, episodes=EPISODES, **options):
    """A trainer whose reference differs from its policy, with learning rate 0, and its batch."""
    if separate:
        options["critic_model"] = separate_critic()
    defaults = {"epochs": 1, "learning_rate": 0.0, "max_gradient_norm": None, "value_coefficient": 0.5}
    trainer = make_ppo(exact(tiny()), reference=exact(tiny(seed=1)), episodes=episodes, **{**defaults, **options})
    return trainer, advantaged(trainer)


def perturbed(batch, seed=5):
    """The batch with old log-probabilities and values that differ from the present ones, so that some tokens clip."""
    generator = torch.Generator().manual_seed(seed)
    noise = {
        name: getattr(batch, name) + 0.3 * torch.randn(batch.mask.shape, generator=generator, dtype=torch.float64)
        for name in ("logprobs", "values")
    }
    return dataclasses.replace(batch, **noise)


def largest_difference(first, second):
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def literal_minibatch_gradient(trainer, batch, rows):
    """Row by row with the plain model, token by token, without the engine's layout: sum over tokens / tokens."""
    settings, model = trainer.settings, trainer.actor_critic
    total, tokens = 0.0, 0
    for row in rows:
        ids = batch.input_ids[row, : int(batch.lengths[row])]
        hidden = model.policy.model(input_ids=ids[None], use_cache=False).last_hidden_state[0]
        logprobs = (model.policy.lm_head(hidden) / settings.rollout.temperature).log_softmax(-1)
        values = model.value_model.score(hidden)[:, 0]
        entropies = -(logprobs.exp() * logprobs).sum(-1)
        for t in range(int(batch.mask[row].sum())):
            at = int(batch.positions[row, t])
            ratio = (logprobs[at - 1, ids[at]] - batch.logprobs[row, t]).exp()
            advantage, old, target = batch.advantages[row, t], batch.values[row, t], batch.returns[row, t]
            surrogate = min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            value, near = values[at - 1], old + (values[at - 1] - old).clamp(-0.2, 0.2)
            value_loss = 0.5 * max((value - target) ** 2, (near - target) ** 2)
            total = total - surrogate + settings.value_coefficient * value_loss
            total = total - settings.entropy_coefficient * entropies[at - 1]
            tokens += 1
    model.zero_grad()
    (total / tokens).backward()
    result = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return result


def test_the_gradient_is_the_literal_mean_over_the_minibatchs_tokens(tmp_path):
    trainer, batch = trainer_and_batch(tmp_path, minibatches=2, entropy_coefficient=0.3, temperature=0.7)
    torch.nn.init.normal_(trainer.actor_critic.value_model.score.weight)
    batch, recorded = perturbed(batch), record_steps(trainer)
    statistics = trainer.update(batch, iteration=0)
    assert 0 < statistics.means()["clip_fraction"] < 1
    assert 0 < statistics.means()["value_clip_fraction"] < 1
    seed = int(np.random.SeedSequence((trainer.seed, 0)).generate_state(1)[0])
    for got, rows in zip(recorded, minibatch_rows(8, 1, 2, seed), strict=True):
        assert largest_difference(got, literal_minibatch_gradient(trainer, batch, rows)) < 1e-12


@pytest.mark.parametrize("separate", [False, True])
def test_oracle_12_microbatches_do_not_change_the_gradient(tmp_path, separate):
    trainer, batch = trainer_and_batch(tmp_path, separate=separate, entropy_coefficient=0.3)
    batch, recorded = perturbed(batch), record_steps(trainer)
    longest = int(batch.lengths.max())
    budgets = {rows: rows * longest for rows in (8, 4, 2)} | {1: 1}
    counts = [len(list(microbatches(batch, range(8), budget))) for budget in budgets.values()]
    assert counts[0] == 1
    assert counts[-1] == 8
    assert counts == sorted(set(counts))
    for budget in budgets.values():
        trainer.settings = trainer.settings.model_copy(update={"microbatch_tokens": budget})
        trainer.update(batch, iteration=0)
    assert len(recorded) == 4
    assert max(float(grad.abs().max()) for grad in recorded[0].values()) > 1e-2
    for other in recorded[1:]:
        assert largest_difference(recorded[0], other) < 1e-12


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_episodes_have_in_common_is_computed_once_and_changes_no_gradient(tmp_path, family):
    """Four samples each of two prompts: microbatches of one episode have nothing in common, and give the same."""
    prompts = [[5, 6, 7, 2, 4, 1], [5, 6, 7, 2, 3]]
    episodes = [episode(prompts[n // 4], [4 + n % 3, n, 3], float(n), index=n // 4) for n in range(8)]
    trainer = make_ppo(exact(tiny(family)), reference=exact(tiny(family, seed=1)), episodes=episodes,
        epochs=1, learning_rate=0.0, max_gradient_norm=None, value_coefficient=0.5,
    )  # fmt: skip
    batch, recorded = perturbed(advantaged(trainer)), record_steps(trainer)
    (whole,) = microbatches(batch, range(8), budget=10**6)
    assert len(whole.tokens.input_ids) == 6 + 1 + 6 + 16  # prompts; three first tokens each; the rest of the responses
    for budget in (10**6, 1):
        trainer.settings = trainer.settings.model_copy(update={"microbatch_tokens": budget})
        trainer.update(batch, iteration=0)
    assert max(float(grad.abs().max()) for grad in recorded[0].values()) > 1e-2
    assert largest_difference(*recorded) < 1e-12


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
def test_oracle_11_what_lies_under_the_mask_changes_no_bit(tmp_path, garbage):
    trainer, batch = trainer_and_batch(tmp_path, whiten_rewards=True)
    batch, recorded = perturbed(batch), record_steps(trainer)
    names = ("sampled_logprobs", "env_rewards", "logprobs", "ref_logprobs", "values", "kl", "rewards", "advantages")
    dirty = {name: torch.where(batch.mask, getattr(batch, name), garbage) for name in (*names, "returns")}
    padding = torch.arange(batch.input_ids.shape[1])[None] >= batch.lengths[:, None]
    other_ids = torch.where(padding, torch.randint(0, 8, padding.shape), batch.input_ids)
    dirty = dataclasses.replace(batch, input_ids=other_ids, **dirty)
    results = [trainer.update(given, iteration=0).means() for given in (batch, dirty)]
    assert results[0] == results[1]
    for name, gradient in recorded[0].items():
        assert torch.equal(gradient, recorded[1][name])


@pytest.mark.parametrize("minibatches", [1, 2, 4])
@pytest.mark.parametrize("microbatch_tokens", [1, 4096])
def test_oracle_14_steps_are_iterations_times_epochs_times_minibatches(tmp_path, minibatches, microbatch_tokens):
    trainer = make_ppo(tiny(layers=1), episodes=EPISODES, epochs=2, minibatches=minibatches,
        total_episodes=24, microbatch_tokens=microbatch_tokens,
    )  # fmt: skip
    recorded, rates = record_steps(trainer), []
    trainer.optimizer.optimizer.register_step_pre_hook(lambda *_: rates.append(trainer.schedule.get_last_lr()[0]))
    trainer.train()
    assert len(recorded) == 3 * 2 * minibatches
    assert trainer.progress.iteration == 3
    assert trainer.progress.episodes == 24
    per_iteration = rates[:: 2 * minibatches]
    assert per_iteration == pytest.approx([3e-6, 2e-6, 1e-6], rel=1e-12)


@pytest.mark.parametrize(("size", "minibatches"), [(12, 3), (12, 1), (10, 4), (10, 16)])
def test_oracle_15_each_sample_once_an_epoch_in_a_new_order(size, minibatches):
    parts = list(minibatch_rows(size, 3, minibatches, seed=1))
    steps = min(size, minibatches)
    assert len(parts) == 3 * steps
    epochs = [[row for part in parts[first : first + steps] for row in part] for first in range(0, 3 * steps, steps)]
    assert all(sorted(epoch) == list(range(size)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert parts == list(minibatch_rows(size, 3, minibatches, seed=1))
    assert parts != list(minibatch_rows(size, 3, minibatches, seed=2))


def test_oracle_15_the_permutation_differs_between_iterations(tmp_path):
    trainer, batch = trainer_and_batch(tmp_path, minibatches=8)
    recorded = record_steps(trainer)
    for iteration in (0, 1, 0):
        trainer.update(batch, iteration)
    first, second, again = recorded[:8], recorded[8:16], recorded[16:]
    assert all(largest_difference(a, b) == 0 for a, b in zip(first, again, strict=True))
    assert any(largest_difference(a, b) > 0 for a, b in zip(first, second, strict=True))


def test_oracle_26_the_gradient_norm_is_clipped(tmp_path):
    for limit, moved in ((1e-12, False), (1e9, True)):
        trainer, batch = trainer_and_batch(tmp_path, optimizer=sgd(1.0), max_gradient_norm=limit)
        before, recorded = weights(trainer.actor_critic), record_steps(trainer)
        statistics = trainer.update(perturbed(batch), 0)
        change = largest_difference(before, weights(trainer.actor_critic))
        assert (change > 1e-2) if moved else (change < 1e-10)
        applied = math.sqrt(sum(float(grad.square().sum()) for grad in recorded[0].values()))
        assert applied == pytest.approx(min(limit, statistics.means()["gradient_norm"]), rel=1e-5)


@pytest.mark.parametrize("separate", [False, True])
def test_oracle_26_activation_checkpointing_runs_blocks_twice_and_changes_nothing(tmp_path, separate):
    gradients, calls = [], []
    for switch in (False, True):
        trainer, batch = trainer_and_batch(tmp_path, separate=separate)
        recorded, counter, both = record_steps(trainer), [], trainer.actor_critic
        if switch:
            recompute_activations(both)
        for model in {both.policy, both.value_model if separate else both.policy}:
            model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, counter=counter: counter.append(1))
        trainer.update(batch, 0)
        gradients += recorded
        calls.append(len(counter))
    assert calls[1] == 2 * calls[0] > 0
    assert largest_difference(*gradients) < 1e-12


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_costs_one_step(tmp_path, value):
    trainer, batch = trainer_and_batch(tmp_path, minibatches=4, learning_rate=1e-3)
    batch.advantages[2, 0] = value
    recorded = record_steps(trainer)
    statistics = trainer.update(batch, 0)
    assert len(recorded) == 3
    assert statistics.means()["skipped_steps"] == 1
    assert statistics.means()["optimizer_steps"] == 4
    assert all(torch.isfinite(weight).all() for weight in weights(trainer.actor_critic).values())
