"""Which episodes an iteration plays, and what plays them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from rlhf.episodes.episode import Episode
from rlhf.generation.generator import Generator


@dataclass(frozen=True)
class Start:
    """One episode to be played: a prompt by number, and which of several samples of it this is."""

    index: int
    sample_index: int
    seed: int  # of an environment that has no numbered prompts
    row: int | None = None  # of an environment that numbers them; None: `index` is the row


class EpisodeSource(Protocol):
    """Where episodes come from."""

    @property
    def num_prompts(self) -> int | None:
        """Number of prompts to go through; None if the environment makes them up from a seed."""

    def collect(self, generator: Generator, starts: Sequence[Start], *, seed: int, iteration: int) -> list[Episode]:
        """Play the episodes, in the given order."""
        ...


def plan(num_prompts: int | None, episodes: int, samples_per_prompt: int, iteration: int, seed: int) -> list[Start]:
    """Say which episodes an iteration plays, over all processes.

    Prompts come in a fresh permutation each epoch; an iteration that reaches the end of one goes on in the next, so a
    data set smaller than an iteration is used several times. The plan depends on nothing but the arguments.
    """
    prompts = episodes // samples_per_prompt
    first = iteration * prompts
    numbers = range(first, first + prompts)
    if num_prompts is None:
        chosen = list(numbers)
    else:
        epochs = {number // num_prompts for number in numbers}
        orders = {epoch: np.random.default_rng((seed, epoch)).permutation(num_prompts) for epoch in epochs}
        chosen = [int(orders[number // num_prompts][number % num_prompts]) for number in numbers]
    samples = _occurrences(chosen, samples_per_prompt)
    seeds = [int(np.random.SeedSequence((seed, number)).generate_state(1)[0]) for number in numbers]
    return [
        Start(index, sample, environment_seed)
        for index, first_sample, environment_seed in zip(chosen, samples, seeds, strict=True)
        for sample in range(first_sample, first_sample + samples_per_prompt)
    ]


def _occurrences(chosen: Sequence[int], samples_per_prompt: int) -> list[int]:
    """First sample index of each chosen prompt: a prompt that comes again is sampled anew, not repeated."""
    seen: Counter[int] = Counter()
    firsts = []
    for index in chosen:
        firsts.append(seen[index] * samples_per_prompt)
        seen[index] += 1
    return firsts
