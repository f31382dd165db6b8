"""Best-of-n with the engine's sampler against its exact law: the largest of n independent draws."""

import math

import pytest
import torch
from ppo_enumerable import ENDS, PROMPT, RESPONSES, STATES, PrefixPolicy, V, random_world, response_logprobs
from ppo_helpers import EOS, runtime

from rlhf.config.ppo import RolloutConfig
from rlhf.generation.generator import Request
from rlhf.generation.noise import response_key
from rlhf.generation.sampler import Sampler

N, GROUPS = 4, 1500


def test_oracle_30_best_of_n_follows_its_order_statistic():
    world = random_world(dense=False)
    policy = PrefixPolicy(STATES, V).load(world.reference)
    requests = [Request(PROMPT, response_key(0, 0, PROMPT, sample), 3) for sample in range(N * GROUPS)]
    sampled = Sampler(policy, RolloutConfig(batch_size=1000), (EOS,), runtime=runtime())(requests)
    rewards = torch.tensor([world.rewards[end] for end in ENDS], dtype=torch.float64)
    assert rewards.unique().numel() == len(RESPONSES)
    numbers = torch.tensor([RESPONSES.index(tuple(result.token_ids)) for result in sampled]).view(GROUPS, N)
    best = numbers.gather(1, rewards[numbers].argmax(1, keepdim=True))[:, 0]
    # P(best = i) = P(r <= r_i)^n - P(r < r_i)^n
    reference = response_logprobs(world.reference).exp()
    below = torch.stack([reference[rewards < reward].sum() for reward in rewards])
    law = (below + reference) ** N - below**N
    assert law.sum().item() == pytest.approx(1, abs=1e-12)
    for drawn, expected in ((numbers.flatten(), reference), (best, law)):
        counts = torch.bincount(drawn, minlength=len(RESPONSES)).double()
        expected = expected * len(drawn)
        often = expected >= 5
        groups = [(counts[often], expected[often]), (counts[~often].sum()[None], expected[~often].sum()[None])]
        chi_squared = sum(float(((got - wanted) ** 2 / wanted).sum()) for got, wanted in groups if wanted.sum() > 0)
        degrees = int(often.sum())
        assert chi_squared < degrees + 3.5 * math.sqrt(2 * degrees)  # 3.5 standard deviations of chi-squared
    divergence = float(torch.where(law > 0, law * (law / reference).log(), 0.0).sum())
    assert 0 < divergence <= math.log(N) - (N - 1) / N
