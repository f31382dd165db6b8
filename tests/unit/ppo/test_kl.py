"""The KL coefficient: numbers by hand, the clip of the error, and control of a toy process."""

import pytest

from rlhf.ppo.kl import AdaptiveKLController, FixedKLController


@pytest.mark.parametrize(
    ("kl", "factor"),
    [(12.0, 1.01024), (0.0, 0.98976), (6.0, 1.0), (6.6, 1.00512), (5.4, 0.99488), (7.2, 1.01024), (100.0, 1.01024)],
)
def test_oracle_23_adaptive_coefficient(kl, factor):
    controller = AdaptiveKLController(0.15, target=6.0, horizon=10_000)
    controller.update(kl, 512)
    assert controller.coefficient == pytest.approx(0.15 * factor, abs=1e-12)


def test_oracle_23_the_coefficient_goes_on_from_where_it_is():
    controller = AdaptiveKLController(0.15, target=6.0, horizon=10_000)
    for kl in (12.0, 12.0, 0.0):
        controller.update(kl, 512)
    assert controller.coefficient == pytest.approx(0.15 * 1.01024**2 * 0.98976, abs=1e-12)


def test_the_controller_holds_its_target():
    controller = AdaptiveKLController(0.5, target=6.0, horizon=1000)
    for _ in range(400):
        controller.update(3.0 / controller.coefficient, 64)  # a policy whose KL falls as the coefficient grows
    assert 3.0 / controller.coefficient == pytest.approx(6.0, abs=1e-4)


def test_a_fixed_coefficient_stays():
    controller = FixedKLController(0.05)
    controller.update(1e9, 512)
    assert controller.coefficient == 0.05
