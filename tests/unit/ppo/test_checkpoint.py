"""What a checkpoint has to hold beyond weights: the generators that rewards of the user's may draw from."""

import random

import numpy as np
import torch
from ppo_helpers import make_ppo, prompts, tiny

from rlhf.ppo import checkpoint


def noisy_reward(prompts, completions, completion_ids, **_):
    """A reward with noise of every kind, as an exploration bonus or a judge that samples has."""
    return [
        len(ids) + 0.5 * float(torch.rand(())) + 0.3 * float(np.random.random()) + 0.2 * random.random()
        for ids in completion_ids
    ]


def scores(folder, *, resume=None):
    seen = []

    def look(iteration):
        seen.append(iteration)
        checkpoint.save(ppo, folder / f"checkpoint-{iteration.number + 1}")

    ppo = make_ppo(tiny(layers=1), reward=noisy_reward, dataset=prompts([[3], [4, 5], [6, 7, 3]]),
        total_episodes=24, max_response_tokens=4, learning_rate=1e-3, epochs=1, on_iteration=look,
    )  # fmt: skip
    for generator in (torch.rand, np.random.random, lambda _: random.random()):
        generator(5)  # what else a program may draw before it trains
    if resume is not None:
        checkpoint.load(ppo, resume)
    ppo.train()
    return {iteration.number: [episode.score for episode in iteration.episodes] for iteration in seen}


def test_oracle_27_random_numbers_go_on_where_they_stopped(tmp_path):
    whole = scores(tmp_path / "whole")
    for saved in (1, 2):
        resumed = scores(tmp_path / f"resumed{saved}", resume=tmp_path / "whole" / f"checkpoint-{saved}")
        assert resumed == {number: whole[number] for number in range(saved, 3)}
    assert len({tuple(s) for s in whole.values()}) == 3
