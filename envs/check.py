"""Checks of one's own environment, in words: `rlhf envs check ID`. No model is needed.

Gymnasium's `check_env`, then random episodes as the trainer would play them, twice: the same row or seed and the same
responses must lead to the same answers.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np
from gymnasium.utils.env_checker import check_env

from envs.calls import checked_reset, checked_step, explained
from envs.errors import TextEnvError
from envs.registry import make_text_env

Level: TypeAlias = Literal["ok", "note", "wrong"]

_SLOW_SECONDS = 0.5  # a step of this length is worth a thread of its own
_PHRASES = ("yes", "I would like to know more.", "42", "", "Grüße 👍", "no\nno\nno", "word " * 300)


@dataclass(frozen=True)
class Finding:
    """What one check found: `ok`, a `note` that may be meant so, or what is `wrong`."""

    level: Level
    text: str

    def __str__(self) -> str:
        return f"  {self.level:<6} {self.text}"


@dataclass
class _Episode:
    """What an environment answered to the same responses."""

    origin: str
    observations: list[str] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    terminated: bool = False
    truncated: bool = False
    seconds: list[float] = field(default_factory=list)  # of each reset and step
    prompt: Any = None
    columns: dict[str, Any] = field(default_factory=dict)

    @property
    def heard(self) -> tuple[Any, ...]:
        """What must be the same when it is played again."""
        return self.observations, self.rewards, self.terminated, self.truncated


def check_text_env(id: str, kwargs: dict[str, Any], *, episodes: int = 10, max_turns: int = 8) -> list[Finding]:
    """Check an environment.

    Args:
        id: As in `ppo.environment.id`.
        kwargs: As in `ppo.environment.kwargs`.
        episodes: Random episodes that are played, each twice.
        max_turns: Responses of an episode that does not end before.

    Returns:
        What was found, one line a check. If the environment cannot be made, that is the only one.
    """
    make = partial(make_text_env, id, **kwargs)
    try:
        env = make()
    except TextEnvError as error:
        return [Finding("wrong", str(error))]
    findings = list(_gymnasium(env))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Gymnasium's check has said it
            played, again = ([_play(make(), number, max_turns) for number in range(episodes)] for _ in range(2))
    except TextEnvError as error:
        return [*findings, Finding("wrong", str(error))]
    return [*findings, _summary(played, max_turns), *_determinism(played, again), *_remarks(env, played, max_turns)]


def _gymnasium(env: Any) -> Iterator[Finding]:
    """What Gymnasium's own check says about the environment itself, without wrappers."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            check_env(env.unwrapped, skip_render_check=True)
        except Exception as error:
            yield Finding("wrong", f"gymnasium's check_env: {_plain(explained(error))}")
            return
    said = list(dict.fromkeys(_plain(str(each.message)) for each in caught))
    yield from (Finding("note", f"gymnasium's check_env: {text}") for text in said)
    if not said:
        yield Finding("ok", "spaces, reset and step follow Gymnasium (check_env)")


def _play(env: Any, number: int, max_turns: int) -> _Episode:
    """Play a random episode; its number decides the row or seed and the responses."""
    rows = getattr(env.unwrapped, "num_rows", None)
    row = None if rows is None else number * max(1, rows // 10) % rows
    rng = np.random.default_rng(number)
    episode = _Episode(origin=f"seed {number}" if row is None else f"row {row}")
    said: str | None = None
    try:
        began = time.perf_counter()
        observation, info = checked_reset(env, number, None if row is None else {"index": row})
        episode.prompt, episode.columns = info["prompt"], info["columns"]
        for _ in range(max_turns):
            episode.seconds.append(time.perf_counter() - began)
            episode.observations.append(observation)
            said = str(rng.choice(_PHRASES))
            began = time.perf_counter()
            observation, reward, episode.terminated, episode.truncated, info = checked_step(env, said)
            episode.rewards.append(reward)
            if episode.terminated or episode.truncated:
                break
        episode.seconds.append(time.perf_counter() - began)
        episode.observations.append(observation)
    except Exception as error:
        where = "reset" if said is None else f"step {len(episode.rewards) + 1}, given the response {said[:80]!r},"
        raise TextEnvError(f"it failed in {where} of the episode with {episode.origin}: {explained(error)}") from error
    finally:
        env.close()
    return episode


def _summary(played: list[_Episode], max_turns: int) -> Finding:
    rewards = [reward for episode in played for reward in episode.rewards]
    ended = sum(episode.terminated for episode in played)
    cut = sum(episode.truncated and not episode.terminated for episode in played)
    return Finding(
        "ok",
        f"{len(played)} random episodes: {len(rewards)} steps, rewards from {min(rewards):g} to {max(rewards):g}; "
        f"{ended} terminated, {cut} truncated, {len(played) - ended - cut} still going after {max_turns} turns",
    )


def _determinism(played: list[_Episode], again: list[_Episode]) -> Iterator[Finding]:
    different = [one for one, other in zip(played, again, strict=True) if one.heard != other.heard]
    if not different:
        yield Finding("ok", "the same row or seed and the same responses lead to the same answers")
        return
    yield Finding(
        "wrong",
        f"{len(different)} of {len(played)} episodes went another way when they were played again, the one with "
        f"{different[0].origin} for example: runs cannot be repeated. Draw from self.np_random, which reset seeds "
        "(super().reset(seed=seed)), and from nothing else.",
    )


def _remarks(env: Any, played: list[_Episode], max_turns: int) -> Iterator[Finding]:
    """What may be meant so, but is worth a look."""
    try:
        json.dumps([episode.columns for episode in played])
    except (TypeError, ValueError) as error:
        yield Finding("wrong", f"info['columns'] holds what cannot be written down ({error}): give texts and numbers.")
    if getattr(env.unwrapped, "num_rows", None) is None and len({str(e.prompt) for e in played}) == 1 < len(played):
        yield Finding("note", f"{len(played)} seeds gave one prompt, {str(played[0].prompt)[:60]!r}: is the seed used?")
    rewards = {reward for episode in played for reward in episode.rewards}
    if len(rewards) == 1:
        yield Finding("note", f"every reward was {rewards.pop():g}: a policy learns where some responses earn more")
    if not any(episode.terminated or episode.truncated for episode in played):
        yield Finding("note", f"no episode ended: ppo.environment.max_turns (here {max_turns}) cuts all of them off")
    if any(episode.terminated and episode.truncated for episode in played):
        yield Finding("note", "some steps are terminated and truncated at once: they count as terminated")
    seconds = [second for episode in played for second in episode.seconds]
    slow = max(seconds) > _SLOW_SECONDS
    text = f"a reset or step takes {1000 * float(np.mean(seconds)):.3g} ms, at most {1000 * max(seconds):.3g} ms"
    hint = ": ppo.environment.workers lets several wait at once, timeout_seconds ends one that hangs" if slow else ""
    yield Finding("note" if slow else "ok", text + hint)


def _plain(text: str) -> str:
    """A message without Gymnasium's colours and prefixes."""
    return text.replace("\x1b[33m", "").replace("\x1b[0m", "").removeprefix("WARN: ").strip()
