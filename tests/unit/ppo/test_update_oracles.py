"""One microbatch's loss by hand, each option with a number of its own, and gradients that are infinite but not NaN."""

import math

import pytest
import torch
from ppo_helpers import advantaged, episode, filled, make_ppo, ppo_section, random_episodes, tiny, weights

from rlhf.packing.microbatch import microbatches
from rlhf.policies.actor_critic import TokenOutputs
from rlhf.ppo.batch import collate
from rlhf.ppo.update import microbatch_loss

# Policy and value have different ranges, so that taking one for the other shows.
PARAMETERS = ppo_section(clip_range=0.1, value_clip_range=0.5, value_coefficient=0.25, entropy_coefficient=0.2)


def by_hand():
    """Two tokens: ratio 1.5 with A = 2, ratio 0.8 with A = 1; values 0.4 and -1, where 0 was said and 1 is right."""
    batch = collate([episode([2], [3, 4])], torch.float64, torch.device("cpu"))
    old = torch.tensor([[-1.0, -2.0]], dtype=torch.float64)
    batch = filled(
        batch,
        logprobs=old,
        advantages=torch.tensor([[2.0, 1.0]], dtype=torch.float64),
        values=torch.tensor([[0.0, 0.0]], dtype=torch.float64),
        returns=torch.tensor([[1.0, 1.0]], dtype=torch.float64),
    )
    outputs = TokenOutputs(
        logprobs=(old[0] + torch.tensor([1.5, 0.8], dtype=torch.float64).log()).requires_grad_(),
        entropies=torch.tensor([0.7, 0.3], dtype=torch.float64).requires_grad_(),
        values=torch.tensor([0.4, -1.0], dtype=torch.float64).requires_grad_(),
        final_values=torch.zeros(1, dtype=torch.float64),
    )
    return batch, outputs


def test_the_loss_of_two_tokens_by_hand():
    batch, outputs = by_hand()
    (part,) = microbatches(batch, [0], 99)
    loss, sums = microbatch_loss(outputs, batch, part, PARAMETERS)
    policy = -2 * 1.1 - 0.8  # the first token's ratio is clipped; the second's is lower, and counts as it is
    value = 0.5 * 0.6**2 + 0.5 * 2.0**2  # 0.4 is within 0.5 of the old value; -1 went the wrong way
    assert loss.item() == pytest.approx(policy + 0.25 * value - 0.2 * (0.7 + 0.3), abs=1e-12)
    assert float(sums["loss/policy"]) == pytest.approx(policy, abs=1e-12)
    assert float(sums["loss/value"]) == pytest.approx(value, abs=1e-12)
    assert (int(sums["clip_fraction"]), int(sums["value_clip_fraction"])) == (1, 0)
    assert float(sums["ratio"]) == pytest.approx(2.3, abs=1e-12)
    assert float(sums["ratio_max"]) == pytest.approx(1.5, abs=1e-12)
    loss.backward()
    assert outputs.logprobs.grad.tolist() == pytest.approx([0.0, -0.8], abs=1e-12)
    assert outputs.values.grad.tolist() == pytest.approx([0.25 * -0.6, 0.25 * -2.0], abs=1e-12)
    assert outputs.entropies.grad.tolist() == pytest.approx([-0.2, -0.2], abs=1e-12)


@pytest.mark.parametrize(("value_range", "slope"), [(0.5, -0.6), (0.3, 0.0), (0.1, 0.0)])
def test_the_value_is_clipped_at_its_own_range(value_range, slope):
    batch, outputs = by_hand()
    (part,) = microbatches(batch, [0], 99)
    parameters = PARAMETERS.model_copy(update={"value_clip_range": value_range, "clip_range": 0.5})
    loss, _ = microbatch_loss(outputs, batch, part, parameters)
    loss.backward()
    assert float(outputs.values.grad[0]) == pytest.approx(0.25 * slope, abs=1e-12)


@pytest.mark.parametrize("limit", [None, 1.0])
def test_an_infinite_gradient_costs_one_step(tmp_path, limit):
    """Infinite without being NaN, as an overflow leaves it: clipping it would give 0 times infinity."""
    trainer = make_ppo(tiny(), episodes=random_episodes(8), minibatches=4, epochs=1, learning_rate=1e-3,
        max_gradient_norm=limit,
    )  # fmt: skip
    batch = advantaged(trainer)
    calls = []

    def overflow(gradient):
        calls.append(gradient)
        return torch.full_like(gradient, math.inf) if len(calls) == 2 else None

    trainer.actor_critic.policy.model.norm.weight.register_hook(overflow)
    before = weights(trainer.actor_critic)
    means = trainer.update(batch, 0).means()
    assert (means["skipped_steps"], means["optimizer_steps"]) == (1, 4)
    after = weights(trainer.actor_critic)
    assert all(torch.isfinite(weight).all() for weight in after.values())
    assert any(not torch.equal(weight, before[name]) for name, weight in after.items())
