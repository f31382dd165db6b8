"""Several environments in one run: whose turn it is follows from the number of the prompt and the weights alone.

Each environment plays its own share with its own source; here prompts are dealt out and episodes put back in order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from rlhf.episodes.environment_source import EnvironmentSource
from rlhf.episodes.episode import Episode
from rlhf.episodes.plan import Start
from rlhf.generation.generator import Generator


@dataclass(frozen=True)
class Turn:
    """Whose turn a prompt is: an environment, and the how manieth prompt of that environment it is."""

    environment: int
    number: int


class MixedSource:
    """Deals the prompts of a run out to several environments.

    Args:
        sources: Name -> what plays the environment.
        weights: Name -> share of the prompts, relative to the others; above 0.
    """

    def __init__(self, sources: Mapping[str, EnvironmentSource], weights: Mapping[str, float]) -> None:
        self.names, self.sources = list(sources), list(sources.values())
        self.shares = np.array([weights[name] for name in self.names]) / sum(weights[name] for name in self.names)
        self._turns: list[Turn] = []
        self._dealt = np.zeros(len(self.names), dtype=np.int64)

    @property
    def parts(self) -> Sequence[EnvironmentSource]:
        """The sources of the environments."""
        return self.sources

    @property
    def num_prompts(self) -> None:
        """None: each environment goes through its own rows, so there is no common pass over them."""
        return None

    def turn(self, number: int) -> Turn:
        """Say whose turn prompt `number` of the run is: the environment's that is furthest behind its share.

        After any number of prompts each environment has had its share of them, to within one prompt or so.
        """
        while len(self._turns) <= number:
            behind = self.shares * (len(self._turns) + 1) - self._dealt
            environment = int(behind.argmax())  # the first of several
            self._turns.append(Turn(environment, int(self._dealt[environment])))
            self._dealt[environment] += 1
        return self._turns[number]

    def collect(self, generator: Generator, starts: Sequence[Start], *, seed: int, iteration: int) -> list[Episode]:
        """Play one episode per start, each in the environment whose turn it is; the order is that of the starts."""
        turns = [self.turn(start.index) for start in starts]
        played: dict[int, Episode] = {}
        for environment, (name, source) in enumerate(zip(self.names, self.sources, strict=True)):
            own = [place for place, turn in enumerate(turns) if turn.environment == environment]
            chosen = [replace(starts[p], row=_row(source.num_prompts, turns[p].number, seed, environment)) for p in own]
            episodes = source.collect(generator, chosen, seed=seed, iteration=iteration) if own else []
            for place, episode in zip(own, episodes, strict=True):
                episode.environment = name
                played[place] = episode
        return [played[place] for place in range(len(starts))]


def _row(num_rows: int | None, number: int, seed: int, environment: int) -> int | None:
    """Which row an environment's prompt `number` is: a fresh permutation in each pass over the rows."""
    if num_rows is None:
        return None
    order = np.random.default_rng((seed, environment, number // num_rows)).permutation(num_rows)
    return int(order[number % num_rows])
