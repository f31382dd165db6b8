"""Advantage estimators against literal sums over tokens, and the properties that follow from their definitions."""

import math

import pytest
import torch

from rlhf.ppo.advantages import ESTIMATORS, AdvantageInputs

B, T = 7, 9


def random_inputs(seed=0, *, gamma=0.97, gae_lambda=0.9, rows=B, width=T, **given):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    lengths[0] = width
    fields = {
        "rewards": torch.randn(rows, width, generator=generator, dtype=torch.float64),
        "mask": torch.arange(width)[None] < lengths[:, None],
        "values": torch.randn(rows, width, generator=generator, dtype=torch.float64),
        "final_values": torch.randn(rows, generator=generator, dtype=torch.float64),
        "groups": torch.arange(rows),
        "gamma": gamma,
        "gae_lambda": gae_lambda,
    }
    return AdvantageInputs(**{**fields, **given})


def literal_gae(rewards, values, final_value, gamma, gae_lambda):
    """A_t = sum over k >= t of (gamma lambda)^(k - t) delta_k, for one episode as lists."""
    count = len(rewards)
    following = [*values[1:], final_value]
    advantages = []
    for t in range(count):
        total = 0.0
        for k in range(t, count):
            delta = rewards[k] + gamma * following[k] - values[k]
            total += (gamma * gae_lambda) ** (k - t) * delta
        advantages.append(total)
    return advantages


def rows_of(inputs):
    for row, length in enumerate(inputs.mask.sum(1).tolist()):
        yield row, length, inputs.rewards[row, :length].tolist(), inputs.values[row, :length].tolist()


@pytest.mark.parametrize("gamma", [1.0, 0.97, 0.0])
@pytest.mark.parametrize("gae_lambda", [1.0, 0.95, 0.0])
def test_oracle_01_gae_is_the_literal_double_loop(gamma, gae_lambda):
    for seed in range(5):
        inputs = random_inputs(seed, gamma=gamma, gae_lambda=gae_lambda)
        advantages, returns = ESTIMATORS["gae"].estimate(inputs)
        for row, length, rewards, values in rows_of(inputs):
            expected = literal_gae(rewards, values, float(inputs.final_values[row]), gamma, gae_lambda)
            assert advantages[row, :length].tolist() == pytest.approx(expected, abs=1e-12)
            assert returns[row, :length].tolist() == pytest.approx(
                [a + v for a, v in zip(expected, values, strict=True)], abs=1e-12
            )
            assert (advantages[row, length:] == 0).all()


def test_oracle_02_lambda_1_without_values_is_the_reward_to_go():
    inputs = random_inputs(gamma=0.9, gae_lambda=1.0, values=torch.zeros(B, T).double(), final_values=torch.zeros(B))
    advantages, returns = ESTIMATORS["gae"].estimate(inputs)
    for row, length, rewards, _ in rows_of(inputs):
        expected = [sum(0.9 ** (k - t) * rewards[k] for k in range(t, length)) for t in range(length)]
        assert advantages[row, :length].tolist() == pytest.approx(expected, abs=1e-12)
        assert returns[row, :length].tolist() == pytest.approx(expected, abs=1e-12)


def test_oracle_02_lambda_0_is_the_temporal_difference():
    inputs = random_inputs(gamma=0.9, gae_lambda=0.0)
    advantages, _ = ESTIMATORS["gae"].estimate(inputs)
    for row, length, rewards, values in rows_of(inputs):
        following = [*values[1:], float(inputs.final_values[row])]
        expected = [r + 0.9 * f - v for r, f, v in zip(rewards, following, values, strict=True)]
        assert advantages[row, :length].tolist() == pytest.approx(expected, abs=1e-12)


def test_oracle_02_returns_minus_values_are_the_advantages():
    inputs = random_inputs()
    advantages, returns = ESTIMATORS["gae"].estimate(inputs)
    difference = torch.where(inputs.mask, returns - inputs.values, 0.0)
    torch.testing.assert_close(difference, advantages, atol=1e-14, rtol=0)


@pytest.mark.parametrize("estimator", ["gae", "reinforce", "rloo", "group"])
def test_oracle_11_nothing_under_the_mask_counts(estimator):
    groups = torch.arange(B) // 3 % 2
    clean = random_inputs(groups=groups)
    expected = ESTIMATORS[estimator].estimate(clean)
    for garbage in (math.nan, math.inf, 1e30):
        dirty = {name: torch.where(clean.mask, getattr(clean, name), garbage) for name in ("rewards", "values")}
        result = ESTIMATORS[estimator].estimate(random_inputs(groups=groups, **dirty))
        for got, wanted in zip(result, expected, strict=True):
            assert torch.equal(got, wanted)


def test_oracle_17_the_advantage_at_eos_does_not_depend_on_padding_behind_it():
    inputs = random_inputs(rows=3, width=4)
    expected, _ = ESTIMATORS["gae"].estimate(inputs)

    def pad(tensor, value):
        return torch.nn.functional.pad(tensor, (0, 5), value=value)

    wide = random_inputs(
        rewards=pad(inputs.rewards, 3.0), values=pad(inputs.values, -7.0), mask=pad(inputs.mask, False),
        final_values=inputs.final_values,
    )  # fmt: skip
    advantages, _ = ESTIMATORS["gae"].estimate(wide)
    assert torch.equal(advantages[:, :4], expected)
    assert (advantages[:, 4:] == 0).all()


def test_oracle_18_a_final_value_enters_as_the_value_of_the_next_state():
    inputs = random_inputs(rows=2, width=1, gamma=0.5, final_values=torch.tensor([4.0, 0.0]).double())
    advantages, _ = ESTIMATORS["gae"].estimate(inputs)
    expected = inputs.rewards[:, 0] - inputs.values[:, 0] + torch.tensor([2.0, 0.0])
    torch.testing.assert_close(advantages[:, 0], expected, atol=1e-15, rtol=0)


def test_oracle_20_splitting_a_terminal_reward_keeps_the_first_return():
    late = torch.zeros(1, 5, dtype=torch.float64)
    late[0, -1] = 3.0
    split = torch.tensor([[0.5, 0.25, 1.0, 0.0, 1.25]], dtype=torch.float64)
    results = []
    for rewards in (late, split):
        inputs = random_inputs(rows=1, width=5, gamma=1.0, gae_lambda=1.0, rewards=rewards,
                               final_values=torch.zeros(1))  # fmt: skip
        results.append(ESTIMATORS["gae"].estimate(inputs)[1][0])
    assert results[0][0] == pytest.approx(3.0, abs=1e-12)
    assert results[1][0] == pytest.approx(3.0, abs=1e-12)
    assert abs(results[0][1] - results[1][1]) > 0.4


def test_oracle_20_potential_shaping_keeps_the_advantages():
    """With r + gamma Phi(s') - Phi(s) the values become V - Phi, and every delta stays (Ng et al., 1999)."""
    inputs = random_inputs(gamma=0.9, gae_lambda=0.8)
    expected, _ = ESTIMATORS["gae"].estimate(inputs)
    potential = torch.randn(B, T + 1, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    last = inputs.mask.sum(1) - 1
    shaped = random_inputs(
        gamma=0.9,
        gae_lambda=0.8,
        rewards=inputs.rewards + 0.9 * potential[:, 1:] - potential[:, :-1],
        values=inputs.values - potential[:, :-1],
        final_values=inputs.final_values - potential[torch.arange(B), last + 1],
    )
    advantages, _ = ESTIMATORS["gae"].estimate(shaped)
    torch.testing.assert_close(advantages, expected, atol=1e-12, rtol=0)


def grouped_inputs():
    groups = torch.tensor([4, 1, 4, 4, 1, 9, 9])  # neither sorted nor of one size
    return random_inputs(3, groups=groups), groups.tolist()


def totals_of(inputs):
    return [sum(rewards) for _, _, rewards, _ in rows_of(inputs)]


def test_rloo_is_the_return_minus_the_mean_of_the_others():
    inputs, groups = grouped_inputs()
    advantages, returns = ESTIMATORS["rloo"].estimate(inputs)
    totals = totals_of(inputs)
    for row, length, _, _ in rows_of(inputs):
        others = [totals[i] for i in range(B) if groups[i] == groups[row] and i != row]
        expected = totals[row] - sum(others) / len(others)
        assert advantages[row, :length].tolist() == pytest.approx([expected] * length, abs=1e-12)
        assert returns[row, :length].tolist() == pytest.approx([totals[row]] * length, abs=1e-12)


def test_group_divides_by_the_groups_standard_deviation():
    inputs, groups = grouped_inputs()
    advantages, _ = ESTIMATORS["group"].estimate(inputs)
    totals = totals_of(inputs)
    for row, length, _, _ in rows_of(inputs):
        own = torch.tensor([totals[i] for i in range(B) if groups[i] == groups[row]], dtype=torch.float64)
        expected = float((totals[row] - own.mean()) / (own.std() + 1e-4))
        assert advantages[row, :length].tolist() == pytest.approx([expected] * length, abs=1e-9)


def test_reinforce_is_the_discounted_reward_to_go_minus_the_mean_return():
    inputs = random_inputs(gamma=0.9)
    advantages, _ = ESTIMATORS["reinforce"].estimate(inputs)
    baseline = sum(totals_of(inputs)) / B
    for row, length, rewards, _ in rows_of(inputs):
        expected = [sum(0.9 ** (k - t) * rewards[k] for k in range(t, length)) - baseline for t in range(length)]
        assert advantages[row, :length].tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("estimator", ["rloo", "group"])
def test_a_group_of_one_is_refused(estimator):
    with pytest.raises(ValueError, match="2 or more of each"):
        ESTIMATORS[estimator].estimate(random_inputs())
