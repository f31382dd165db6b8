"""Token rewards and the penalty for a missing stop: by hand, with garbage under the mask, in rows of unequal length."""

import math

import pytest
import torch
from ppo_helpers import episode

from rlhf.config.ppo import MissingStopConfig
from rlhf.ppo.batch import collate
from rlhf.ppo.token_rewards import penalise_unfinished, token_rewards

MASK = torch.tensor([[True, True, True], [True, False, False]])
LOGPROBS = torch.tensor([[-1.0, -2.0, -0.5], [-3.0, 0.0, 0.0]], dtype=torch.float64)
REFERENCE = torch.tensor([[-1.5, -1.0, -0.5], [-3.25, 0.0, 0.0]], dtype=torch.float64)
EARNED = torch.tensor([[0.0, 0.5, 2.0], [-1.0, 0.0, 0.0]], dtype=torch.float64)


def rewarded(garbage=0.0, coefficient=0.2):
    given = [torch.where(MASK, tensor, garbage) for tensor in (EARNED, LOGPROBS, REFERENCE)]
    return token_rewards(*given, MASK, coefficient)


def test_each_token_gets_what_it_earned_less_what_it_departed():
    """An action that the policy likes better than the reference does costs; one it likes less pays."""
    rewards, kl = rewarded()
    expected_kl = torch.tensor([[0.5, -1.0, 0.0], [0.25, 0.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([[-0.1, 0.7, 2.0], [-1.05, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(kl, expected_kl, atol=1e-15, rtol=0)
    torch.testing.assert_close(rewards, expected, atol=1e-15, rtol=0)


def test_the_expected_penalty_is_the_divergence():
    """Over all actions of a state, weighted by the policy: the mean of the per-token estimate is KL(pi || pi_ref)."""
    own, reference = (torch.tensor(p, dtype=torch.float64) for p in ([0.7, 0.2, 0.1], [0.2, 0.3, 0.5]))
    mask = torch.ones(3, 1, dtype=torch.bool)
    rewards, kl = token_rewards(
        torch.zeros(3, 1, dtype=torch.float64), own.log()[:, None], reference.log()[:, None], mask, 2.0
    )
    divergence = 0.7 * math.log(0.7 / 0.2) + 0.2 * math.log(0.2 / 0.3) + 0.1 * math.log(0.1 / 0.5)
    assert float(own @ kl[:, 0]) == pytest.approx(divergence, abs=1e-14)
    assert float(own @ rewards[:, 0]) == pytest.approx(-2 * divergence, abs=1e-14)


@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
def test_oracle_11_what_lies_under_the_mask_earns_and_costs_nothing(garbage):
    for got, expected in zip(rewarded(garbage), rewarded(), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("action", "expected"),
    [("none", [1.0, 2.0, 3.0]), ("replace", [1.0, 0.5, 3.0]), ("subtract", [1.0, 1.5, 3.0])],
)
def test_only_responses_without_a_stop_are_changed(action, expected):
    scores, stopped = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([True, False, True])
    missing_stop = MissingStopConfig(action=action, value=0.0 if action == "none" else 0.5)
    changed = penalise_unfinished(scores, torch.ones(3, 1, dtype=torch.bool), stopped, missing_stop)
    assert changed[:, 0].tolist() == expected


def test_the_penalty_is_on_the_last_token_of_a_response_shorter_than_its_neighbours():
    """Responses may have different limits: the room that is left behind their prompts, or turns."""
    batch = collate(
        [
            episode([2], [3, 4], 1.0, stop_reason="length"),
            episode([2], [3, 4, 5, 6], 2.0, stop_reason="length"),
            episode([2], [3, 1], 3.0, stop_reason="eos"),
            episode([2], [3, 4, 5], 4.0, stop_reason="stop_string"),
        ],
        torch.float64,
        torch.device("cpu"),
    )
    missing_stop = MissingStopConfig(action="subtract", value=10.0)
    changed = penalise_unfinished(batch.env_rewards, batch.mask, batch.stopped, missing_stop)
    assert changed.tolist() == [[0, -9, 0, 0], [0, 0, 0, -8], [0, 3, 0, 0], [0, 0, 4, 0]]
