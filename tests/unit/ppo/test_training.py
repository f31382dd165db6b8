"""Whole runs that must end at an optimum known in closed form; each prints how far from it it stopped."""

import math

import pytest
import torch
from ppo_enumerable import ENDS, PROMPT, STATES, PrefixCritic, PrefixPolicy, V, random_world, response_logprobs
from ppo_helpers import advantaged, episode, exact, make_ppo, prompts, tiny

ARMS = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)  # the reference's probabilities of the tokens 3, 4 and 5
REWARDS = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)


def bandit(probabilities):
    """A Llama that answers the prompt [2] with the tokens 3, 4 and 5, with these probabilities."""
    policy = exact(tiny(layers=1, vocab_size=6))
    with torch.no_grad():
        hidden = policy.model(torch.tensor([[2]])).last_hidden_state[0, -1]
        logits = torch.cat([torch.full((3,), -30.0, dtype=torch.float64), probabilities.log()])
        policy.lm_head.weight.copy_(logits[:, None] * hidden / (hidden @ hidden))
    return policy


def probabilities(policy):
    with torch.no_grad():
        return policy(torch.tensor([[2]])).logits[0, -1].softmax(-1)[3:]


def train(policy, reward, prompt, *, iterations, batch=64, **options):
    trainer = make_ppo(policy, reward=reward, dataset=prompts([prompt] * 4), total_episodes=iterations * batch,
        **{
            "episodes_per_iteration": batch, "batch_size": batch, "minibatches": 2,
            "epochs": 2, "whiten_advantages": False, "value_coefficient": 0.5, "value_clip_range": 1e9, **options,
        },
    )  # fmt: skip
    trainer.train()
    return trainer


def train_bandit(folder, start, coefficient, **options):
    def reward(prompts, completions, completion_ids, **_):
        return [float(ids[0] - 3) for ids in completion_ids]

    policy = bandit(start)
    options = {"max_response_tokens": 1, "max_gradient_norm": None, "learning_rate": 1e-2, **options}
    train(policy, reward, [2], reference=bandit(ARMS), kl_coefficient=coefficient, **options)
    return probabilities(policy)


def objective(p, coefficient=1.0):
    return float(p @ REWARDS - coefficient * (p * (p / ARMS).log()).sum())


def distance(p, q):
    return float((p - q).abs().sum() / 2)


@pytest.mark.slow
def test_oracle_05_the_bandit_reaches_its_analytic_optimum(tmp_path):
    optimum = ARMS * REWARDS.exp()
    normaliser = float(optimum.sum())
    optimum /= normaliser
    assert normaliser == pytest.approx(2.793296, abs=1e-6)
    assert optimum.tolist() == pytest.approx([0.179000, 0.291944, 0.529056], abs=1e-6)
    assert float((optimum * (optimum / ARMS).log()).sum()) == pytest.approx(0.322834, abs=1e-6)
    assert objective(optimum) == pytest.approx(math.log(normaliser), abs=1e-12)
    reached = train_bandit(tmp_path, ARMS, 1.0, iterations=60)
    print(
        f"\nbandit: total variation {distance(reached, optimum):.2e}, "
        f"J* - J {objective(optimum) - objective(reached):.2e}"
    )
    assert distance(reached, optimum) <= 1e-3
    assert objective(optimum) == pytest.approx(1.027222, abs=1e-6)
    assert objective(reached) == pytest.approx(1.027222, abs=1e-5)


@pytest.mark.slow
def test_oracle_06_the_enumerable_language_model_reaches_its_optimum(tmp_path):
    world = random_world(dense=False)
    optimum, values = world.soft_optimum()
    policy = PrefixPolicy(STATES, V).load(world.reference)

    def reward(prompts, completions, completion_ids, **_):
        return [world.rewards[PROMPT + tuple(ids)] for ids in completion_ids]

    before = response_logprobs(policy.table())
    train(
        policy, reward, PROMPT, critic_model=PrefixCritic(STATES).load(dict.fromkeys(STATES, 0.0)),
        max_response_tokens=3, kl_coefficient=world.coefficient, learning_rate=3e-2, iterations=160,
    )  # fmt: skip
    reached, best = response_logprobs(policy.table()), response_logprobs(optimum)
    scores = torch.tensor([world.rewards[end] for end in ENDS], dtype=torch.float64)
    # The same optimum without backward induction: pi_ref exp(r / b) / Z over the 40 responses.
    exponent = before + scores / world.coefficient
    torch.testing.assert_close(best, exponent - exponent.logsumexp(0), atol=1e-12, rtol=0)
    value = float(world.coefficient * exponent.logsumexp(0))
    assert values[PROMPT] == pytest.approx(value, abs=1e-12)

    def divergence(logprobs):
        return float((logprobs.exp() * (logprobs - best)).sum())

    def expected(logprobs):
        return float((logprobs.exp() * (scores - world.coefficient * (logprobs - before))).sum())

    print(f"\nlanguage model: KL {divergence(before):.3f} -> {divergence(reached):.2e}, "
          f"b ln Z - J {value - expected(before):.3f} -> {value - expected(reached):.2e}")  # fmt: skip
    assert divergence(before) > 0.3
    assert divergence(reached) < 0.01
    assert expected(reached) == pytest.approx(value, abs=0.01 * world.coefficient)


@pytest.mark.slow
def test_oracle_07_without_a_penalty_the_best_arm_wins(tmp_path):
    reached = train_bandit(tmp_path, ARMS, 0.0, iterations=40)
    print(f"\nb = 0: {reached.tolist()}")
    assert reached[2] > 0.97


@pytest.mark.slow
def test_oracle_07_a_huge_penalty_leads_back_to_the_reference(tmp_path):
    start = torch.tensor([0.2, 0.2, 0.6], dtype=torch.float64)
    reached = train_bandit(tmp_path, start, 1e3, iterations=60)
    print(f"\nb = 1e3: total variation from the reference {distance(reached, ARMS):.2e}")
    assert distance(reached, ARMS) < 5e-3


@pytest.mark.slow
@pytest.mark.parametrize("bootstrap", [True, False])
def test_oracle_18_a_truncated_task_is_worth_what_it_would_go_on_to_earn(tmp_path, bootstrap):
    """Reward 1 for ever, cut off after 4 tokens: V = 1 / (1 - gamma) = 10, which the cut alone would hide."""
    critic = PrefixCritic([])  # one state, one value
    torch.nn.init.zeros_(critic.score.weight)
    trainer = make_ppo(PrefixPolicy([], V), critic_model=critic, total_episodes=4 * 200,
        episodes=[
            episode([2], [3, 3, 3, 3], rewards=[1.0] * 4, stop_reason="length", truncated=True, index=n)
            for n in range(4)
        ],
        gamma=0.9, kl_coefficient=0.0, bootstrap_truncated=bootstrap, value_clip_range=1e9, value_coefficient=1.0,
        critic_learning_rate=0.3, max_gradient_norm=None, epochs=1, scheduler="constant",
    )  # fmt: skip
    trainer.train()
    value = critic.score.weight[0, 0].item()
    print(f"\nV = {value:.4f}, 1 / (1 - gamma) = 10")
    if bootstrap:
        assert value == pytest.approx(10, abs=0.02)
    else:
        assert value < 4


def test_a_terminated_task_is_not_bootstrapped(tmp_path):
    critic = PrefixCritic([])
    trainer = make_ppo(
        PrefixPolicy([], V), critic_model=critic, bootstrap_truncated=True,
        kl_coefficient=0.0, gamma=1.0, gae_lambda=1.0,
        episodes=[
            episode([2], [3, 3], rewards=[0.0, 1.0], truncated=cut, stop_reason="length", index=cut)
            for cut in (False, True)
        ],
        minibatches=1,
    )  # fmt: skip
    torch.nn.init.constant_(critic.score.weight, 5.0)
    batch = advantaged(trainer)
    assert batch.returns.tolist() == [[1.0, 1.0], [6.0, 6.0]]
