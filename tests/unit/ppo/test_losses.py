"""Clipped losses on a grid with values and gradients by hand, the ratio's clamp, and the KL statistic."""

import math

import pytest
import torch

from rlhf.ppo.losses import approximate_kl, importance_ratio, policy_loss, value_loss


def number(value):
    return torch.tensor([value], dtype=torch.float64)


# ratio, advantage, loss, d loss / d ratio, clipped; at clip range 0.2
POLICY_GRID = [
    (0.5, 1.0, -0.5, -1.0, False),
    (0.5, -1.0, 0.8, 0.0, True),
    (1.0, 1.0, -1.0, -1.0, False),
    (1.0, -1.0, 1.0, 1.0, False),
    (1.5, 1.0, -1.2, 0.0, True),
    (1.5, -1.0, 1.5, 1.0, False),
    (5.0, 1.0, -1.2, 0.0, True),
    (5.0, -1.0, 5.0, 1.0, False),
    (1.1, 2.0, -2.2, -2.0, False),
    (0.9, -0.5, 0.45, 0.5, False),
]


@pytest.mark.parametrize(("ratio", "advantage", "loss", "slope", "is_clipped"), POLICY_GRID)
def test_oracle_22_policy_clip(ratio, advantage, loss, slope, is_clipped):
    given = number(ratio).requires_grad_()
    losses, clipped = policy_loss(given, number(advantage), 0.2)
    losses.sum().backward()
    assert losses.item() == pytest.approx(loss, abs=1e-14)
    assert given.grad.item() == pytest.approx(slope, abs=1e-14)
    assert (given.grad.item() == 0) is is_clipped is bool(clipped)


def test_oracle_22_the_clip_range_is_the_one_given():
    losses, clipped = policy_loss(number(1.15), number(1.0), 0.1)
    assert losses.item() == pytest.approx(-1.1, abs=1e-14)
    assert bool(clipped)


# value, old value, return, loss, d loss / d value, clipped; at clip range 0.2
VALUE_GRID = [
    (0.1, 0.0, 1.0, 0.405, -0.9, False),  # within the range: plain squared error
    (0.5, 0.0, 1.0, 0.32, 0.0, True),  # moved towards the return, too far: held back
    (-0.5, 0.0, 1.0, 1.125, -1.5, False),  # moved away: the unclipped error is the larger one
    (0.5, 0.0, -1.0, 1.125, 1.5, False),
    (2.0, 0.0, 1.0, 0.5, 1.0, False),  # past the return
    (1.5, 0.0, 1.0, 0.32, 0.0, True),
    (1.5, 1.0, 2.0, 0.32, 0.0, True),  # as above, around another old value: the range is around it, not around 0
    (0.5, 1.0, 2.0, 1.125, -1.5, False),
    (1.1, 1.0, 2.0, 0.405, -0.9, False),
]


@pytest.mark.parametrize(("value", "old", "target", "loss", "slope", "is_clipped"), VALUE_GRID)
def test_oracle_22_value_clip(value, old, target, loss, slope, is_clipped):
    given = number(value).requires_grad_()
    losses, clipped = value_loss(given, number(old), number(target), 0.2)
    losses.sum().backward()
    assert losses.item() == pytest.approx(loss, abs=1e-14)
    assert given.grad.item() == pytest.approx(slope, abs=1e-14)
    assert bool(clipped) is is_clipped


def test_oracle_22_no_value_clip_with_a_wide_range():
    values = torch.linspace(-9, 9, 37, dtype=torch.float64)
    losses, clipped = value_loss(values, torch.zeros(37).double(), torch.ones(37).double(), math.inf)
    torch.testing.assert_close(losses, 0.5 * (values - 1) ** 2, atol=1e-13, rtol=0)
    assert not clipped.any()


def test_ratio_is_the_quotient_of_probabilities():
    new, old = number(math.log(0.3)).requires_grad_(), number(math.log(0.2))
    ratio = importance_ratio(new, old)
    ratio.sum().backward()
    assert ratio.item() == pytest.approx(1.5, abs=1e-14)
    assert new.grad.item() == pytest.approx(1.5, abs=1e-14)


@pytest.mark.parametrize("sign", [1, -1])
def test_log_ratio_is_clamped_at_20(sign):
    new = number(500.0 * sign).requires_grad_()
    ratio = importance_ratio(new, number(0.0))
    ratio.sum().backward()
    assert ratio.item() == pytest.approx(math.exp(20.0 * sign), rel=1e-14)
    assert new.grad.item() == 0


def test_approximate_kl_is_half_the_squared_log_ratio():
    assert approximate_kl(number(-1.0), number(-1.5)).item() == pytest.approx(0.125, abs=1e-15)


def test_approximate_kl_estimates_the_divergence_of_near_policies():
    """k2 differs from KL(old || new) in third order only (Schulman, "Approximating KL Divergence", 2020)."""
    old = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    direction = torch.tensor([0.3, -0.1, -0.2], dtype=torch.float64)
    gaps = []
    for step in (0.1, 0.05):
        new = (old.log() + step * direction).softmax(0)
        exact = (old * (old / new).log()).sum()
        gaps.append(float(abs((old * approximate_kl(new.log(), old.log())).sum() - exact)))
    assert gaps[0] < 1e-5
    assert gaps[0] / gaps[1] > 6  # a third-order gap shrinks 8 times when the step is halved
