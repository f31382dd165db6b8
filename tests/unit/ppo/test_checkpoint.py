"""What a checkpoint has to hold beyond weights: the generators that rewards of the user's may draw from."""

import random

import numpy as np
import torch
from ppo_helpers import make_trainer, prompts, tiny


def noisy_reward(prompts, completions, completion_ids, **_):
    """A reward with noise of every kind, as an exploration bonus or a judge that samples has."""
    return [
        len(ids) + 0.5 * float(torch.rand(())) + 0.3 * float(np.random.random()) + 0.2 * random.random()
        for ids in completion_ids
    ]


def scores(folder, *, resume=None):
    seen = []
    trainer = make_trainer(
        folder, tiny(layers=1), reward_model=noisy_reward, train_dataset=prompts([[3], [4, 5], [6, 7, 3]]),
        total_episodes=24, response_length=4, learning_rate=1e-3, num_ppo_epochs=1, save_strategy="steps",
        save_steps=1, on_iteration=seen.append,
    )  # fmt: skip
    for generator in (torch.rand, np.random.random, lambda _: random.random()):
        generator(5)  # what else a program may draw before it trains
    trainer.train(resume_from_checkpoint=resume)
    return {iteration.number: [episode.score for episode in iteration.episodes] for iteration in seen}


def test_oracle_27_random_numbers_go_on_where_they_stopped(tmp_path):
    whole = scores(tmp_path / "whole")
    for saved in (1, 2):
        resumed = scores(tmp_path / f"resumed{saved}", resume=str(tmp_path / "whole" / f"checkpoint-{saved}"))
        assert resumed == {number: whole[number] for number in range(saved, 3)}
    assert len({tuple(s) for s in whole.values()}) == 3
