"""Probes: environments so small that the best score is known. `rlhf probe` trains each in seconds.

A ladder: each rung adds one thing that a trainer has to get right, so the first one that is missed says where to look.

    rlhf/ProbeToken-v0     say "a"                                      the policy gradient has the right sign
    rlhf/ProbeCopy-v0      say the letter that the prompt names         the policy reads its prompt
    rlhf/ProbeNoise-v0     say "a"; the reward is noisy                 advantages are averaged, not chased
    rlhf/ProbeTwoTurns-v0  say the letter, and again when asked for it  each turn earns its own reward
    rlhf/ProbeDelay-v0     say "a"; the reward comes two turns later    rewards reach back over turns

A response counts by its first letter. Every probe is worth 1 at best, and 1/4 to a policy that says one of the four
letters by chance.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from envs.base import Opening, Reply, RewardSource, TextEnv, Turns

LETTERS = "abcd"
BEST, BY_CHANCE = 1.0, 0.25  # mean score of an episode


def naming(letter: str) -> str:
    """A prompt that names a letter, loudly: a tiny model reads it without having learnt to look for it."""
    return " ".join([letter] * 4)


class _Probe(TextEnv):
    """What all probes share: they give their own rewards."""

    reward_source: ClassVar[RewardSource] = "environment"


class _OneLetter(_Probe):
    """A single letter is right, whatever the row."""

    turns: ClassVar[Turns] = "one"
    num_rows: ClassVar[int] = 1

    def open_row(self, index: int) -> Opening:
        """Ask for the letter without naming it."""
        return Opening("Say it.")

    def reply(self, response: str) -> Reply:
        """Pay for an "a"."""
        return Reply(None, reward=float(_first(response) == "a"), terminated=True)


class TokenProbe(_OneLetter):
    """Probe: one token, the same for every prompt."""


class NoiseProbe(_OneLetter):
    """Probe: one token, and a reward with noise of standard deviation 1."""

    def reply(self, response: str) -> Reply:
        """Pay for an "a", plus or minus 1 by a coin."""
        noise = float(self.np_random.choice((-1.0, 1.0)))
        return Reply(None, reward=float(_first(response) == "a") + noise, terminated=True)


class CopyProbe(_Probe):
    """Probe: the token that the prompt names."""

    turns: ClassVar[Turns] = "one"
    num_rows: ClassVar[int] = len(LETTERS)

    def open_row(self, index: int) -> Opening:
        """Name a letter."""
        self._letter = LETTERS[index]
        return Opening(naming(self._letter))

    def reply(self, response: str) -> Reply:
        """Pay for that letter."""
        return Reply(None, reward=float(_first(response) == self._letter), terminated=True)


class TwoTurnsProbe(CopyProbe):
    """Probe: a letter, and once more in the next turn; each turn is worth a half."""

    turns: ClassVar[Turns] = "several"

    def open_row(self, index: int) -> Opening:
        """Name a letter."""
        self._said = 0
        return super().open_row(index)

    def reply(self, response: str) -> Reply:
        """Pay for the letter in both turns."""
        self._said += 1
        over = self._said == 2
        return Reply(None if over else "Again.", reward=0.5 * float(_first(response) == self._letter), terminated=over)


class DelayProbe(_Probe):
    """Probe: the first of three turns decides, the reward comes in the last."""

    turns: ClassVar[Turns] = "several"
    num_rows: ClassVar[int] = 1

    def open_row(self, index: int) -> Opening:
        """Ask for the letter without naming it."""
        self._responses: list[str] = []
        return Opening("Say it.")

    def reply(self, response: str) -> Reply:
        """Pay at the end for what was said at the beginning."""
        self._responses.append(response)
        if len(self._responses) < 3:
            return Reply("Go on.", reward=0.0)
        return Reply(None, reward=float(_first(self._responses[0]) == "a"), terminated=True)


def babble(rows: int = 512, seed: int = 0) -> list[dict[str, Any]]:
    """Demonstrations of a policy that says one of the letters by chance, in all situations that occur in a probe."""
    rng = np.random.default_rng(seed)
    openings = ["Say it.", *map(naming, LETTERS)]
    conversations = []
    for _ in range(rows):
        turns = [
            str(rng.choice(openings)),
            *(["Again.", "Go on."][int(rng.integers(2))] for _ in range(rng.integers(3))),
        ]
        messages = []
        for said in turns:
            messages += [
                {"role": "user", "content": said},
                {"role": "assistant", "content": str(rng.choice([*LETTERS]))},
            ]
        conversations.append({"messages": messages})
    return conversations


def _first(response: str) -> str:
    return response.strip()[:1]
