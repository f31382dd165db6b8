"""PPO on a language model of which every response can be listed.

At the optimum, which backward induction finds, every advantage must be 0. And the gradient of the surrogate must
be that of the objective itself, by automatic differentiation of the sum over all responses.
"""

import dataclasses

import pytest
import torch
from ppo_enumerable import (
    ENDS,
    PROMPT,
    RESPONSES,
    STATES,
    PrefixCritic,
    PrefixPolicy,
    V,
    random_world,
    response_logprobs,
)
from ppo_helpers import EOS, advantaged, make_ppo

from rlhf.packing.microbatch import microbatches
from rlhf.ppo.update import microbatch_loss


def scored(folder, world, policy, values, *, temperature=0.7, episodes=None, **options):
    """Trainer and batch with every response of the world as one episode, scored by the engine."""
    trainer = make_ppo(
        PrefixPolicy(STATES, V).load(policy, temperature),
        reference=PrefixPolicy(STATES, V).load(world.reference, temperature),
        critic_model=PrefixCritic(STATES + ENDS).load({state: float(value) for state, value in values.items()}),
        episodes=episodes or world.episodes(),
        temperature=temperature,
        kl_coefficient=world.coefficient,
        **{"gamma": world.gamma, "gae_lambda": 0.95, "whiten_advantages": False, **options},
    )
    return trainer, advantaged(trainer)


def test_there_are_forty_responses():
    assert len(RESPONSES) == len(set(RESPONSES)) == 40
    assert len(STATES) == 13


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 1.0), (1.0, 0.95), (0.9, 0.5), (0.8, 0.0), (0.0, 1.0)])
def test_oracle_03_soft_bellman_zero(tmp_path, gamma, gae_lambda, temperature):
    world = random_world(gamma=gamma)
    policy, values = world.soft_optimum()
    _, batch = scored(tmp_path, world, policy, values, gae_lambda=gae_lambda, temperature=temperature)
    assert batch.mask.sum() == sum(map(len, RESPONSES))
    assert batch.advantages.abs().max() < 1e-14
    torch.testing.assert_close(batch.returns, batch.values.where(batch.mask, torch.tensor(0.0)), atol=1e-14, rtol=0)


def test_oracle_03_zero_with_a_score_that_comes_once_and_a_penalty_for_no_stop(tmp_path):
    world = random_world(dense=False)
    episodes = world.episodes()
    for response in RESPONSES:
        if response[-1] != EOS:
            world.rewards[PROMPT + response] = -1.5  # what the engine puts in place of the score
    policy, values = world.soft_optimum()
    options = {"missing_stop_action": "replace", "missing_stop_value": -1.5}
    _, batch = scored(tmp_path, world, policy, values, episodes=episodes, **options)
    assert batch.advantages.abs().max() < 1e-14
    _, unpunished = scored(tmp_path, world, policy, values, episodes=episodes)
    assert unpunished.advantages.abs().max() > 0.1


def test_oracle_03_zero_with_truncated_episodes_that_are_bootstrapped(tmp_path):
    world = random_world(gamma=0.9)
    unfinished = [end for end in ENDS if end[-1] != EOS]
    world.ends |= {end: 0.3 * number - 2 for number, end in enumerate(unfinished)}
    policy, values = world.soft_optimum()
    values |= {end: 1e3 for end in ENDS if end[-1] == EOS}  # a terminal state's value must not be read
    options = {"episodes": world.episodes(truncate_unfinished=True)}
    _, batch = scored(tmp_path, world, policy, values, bootstrap_truncated=True, **options)
    assert batch.advantages.abs().max() < 1e-14
    _, cut = scored(tmp_path, world, policy, values, bootstrap_truncated=False, **options)
    assert cut.advantages.abs().max() > 0.1


@pytest.mark.parametrize("change", ["coefficient", "sharper", "values", "policy"])
def test_oracle_03_anything_else_is_not_zero(tmp_path, change):
    world = random_world()
    policy, values = world.soft_optimum()
    options = {}
    if change == "coefficient":
        world.coefficient = -world.coefficient
    elif change == "sharper":
        policy = {state: row * 1.2 for state, row in policy.items()}
    elif change == "values":
        values[PROMPT] += 0.1
    else:
        policy = dict(world.reference)
    _, batch = scored(tmp_path, world, policy, values, **options)
    assert batch.advantages.abs().max() > 0.05


def objective(logits, world, temperature):
    """E[sum of rewards] - b KL(pi || pi_ref) by summing over all responses; logits (V, states)."""
    logprobs = {state: (logits[:, number] / temperature).log_softmax(0) for number, state in enumerate(STATES)}
    total = logits.new_zeros(())
    for response in RESPONSES:
        logp, ratio, reward = 0.0, 0.0, 0.0
        for t, token in enumerate(response):
            state = PROMPT + response[:t]
            logp = logp + logprobs[state][token]
            ratio = ratio + logprobs[state][token] - world.reference[state][token]
            reward += world.rewards[(*state, token)]
        total = total + logp.exp() * (reward - world.coefficient * ratio)
    return total


def surrogate_gradient(trainer, batch, weights, **changes):
    """Gradient of the engine's summed loss on the policy's table; each episode counts with its probability."""
    batch = dataclasses.replace(batch, advantages=batch.advantages * weights[:, None])
    settings = trainer.settings.model_copy(update={"advantage": "reinforce", **changes})  # without a value loss
    trainer.model.zero_grad()
    for part in microbatches(batch, range(len(batch)), 24):
        outputs = trainer.model(part, settings.rollout.temperature)
        loss, _ = microbatch_loss(outputs, batch, part, settings)
        loss.backward()
    return trainer.actor_critic.policy.lm_head.weight.grad[:, : len(STATES)].clone()


def off_optimum(seed):
    """A policy that is neither the reference nor optimal, and values that are simply wrong."""
    generator = torch.Generator().manual_seed(seed)
    policy = {state: torch.randn(V, generator=generator, dtype=torch.float64).log_softmax(0) for state in STATES}
    values = {state: float(torch.randn((), generator=generator)) for state in STATES}
    return policy, values


def exact_gradient(trainer, world):
    logits = trainer.actor_critic.policy.lm_head.weight.detach()[:, : len(STATES)].clone().requires_grad_()
    objective(logits, world, trainer.settings.rollout.temperature).backward()
    return -logits.grad


def relative_error(got, expected):
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("baseline", ["wrong", "zero"])
def test_oracle_04_the_surrogates_gradient_is_that_of_the_objective(tmp_path, baseline, temperature):
    world = random_world(1)
    policy, values = off_optimum(2)
    if baseline == "zero":
        values = dict.fromkeys(STATES, 0.0)
    trainer, batch = scored(tmp_path, world, policy, values, gae_lambda=1.0, temperature=temperature)
    weights = response_logprobs(policy).exp()
    assert float(weights.sum()) == pytest.approx(1, abs=1e-12)
    assert relative_error(surrogate_gradient(trainer, batch, weights), exact_gradient(trainer, world)) < 1e-12


def test_oracle_04_other_estimates_have_another_gradient(tmp_path):
    world = random_world(1)
    policy, values = off_optimum(2)
    weights = response_logprobs(policy).exp()
    trainer, batch = scored(tmp_path, world, policy, values, gae_lambda=0.95)
    expected = exact_gradient(trainer, world)
    assert relative_error(surrogate_gradient(trainer, batch, weights), expected) > 1e-2  # biased by wrong values
    trainer, batch = scored(tmp_path, world, policy, values, gae_lambda=1.0)
    lengths = batch.mask.sum(1)
    assert relative_error(surrogate_gradient(trainer, batch, weights / lengths), expected) > 0.1  # sequence mean
    k1 = batch.logprobs - batch.ref_logprobs
    k3 = (-k1).exp() - 1 + k1
    change = torch.where(batch.mask, world.coefficient * (k1 - k3), 0.0).flip(1).cumsum(1).flip(1)
    other = dataclasses.replace(batch, advantages=torch.where(batch.mask, batch.advantages + change, 0.0))
    assert relative_error(surrogate_gradient(trainer, other, weights), expected) > 0.1
