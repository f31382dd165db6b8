"""Which registered environments speak text, how many turns they have and where their rewards come from.

Gymnasium's registry knows names and entry points only. Whether an environment speaks text is read from its class where
that says so; else it is made once, quietly. `registry` makes environments for use.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

import gymnasium
from gymnasium.envs.registration import load_env_creator
from gymnasium.spaces import Text

from envs.base import RewardSource, TextEnv, Turns

__all__ = ["RegisteredEnv", "describe_envs", "list_envs"]

_TURNS = {"one": "one turn", "several": "several turns", None: "turns not declared"}
_REWARDS = {
    "environment": "rewards of its own",
    "components": "rewards by reward functions and models",
    None: "rewards not declared",
}


@dataclass(frozen=True)
class RegisteredEnv:
    """One text environment.

    Attributes:
        id: What `make_text_env` and `ppo.environment.id` call it.
        summary: First line of what its class says about itself.
        ours: Whether it comes with this project.
        turns: See `TextEnv.turns`; None if it does not say.
        reward_source: See `TextEnv.reward_source`; None if it does not say.
    """

    id: str
    summary: str
    ours: bool
    turns: Turns | None
    reward_source: RewardSource | None


def list_envs() -> list[RegisteredEnv]:
    """Return the text environments that are registered now, sorted by id.

    What cannot be imported or made without arguments is left out, unless its class says that it speaks text.
    """
    found = []
    for spec in sorted(gymnasium.registry.values(), key=lambda spec: str(spec.id)):
        with _quiet():
            target = _target(spec)
            if target is None or not _speaks_text(target, spec):
                continue
        module = str(getattr(target, "__module__", ""))
        found.append(
            RegisteredEnv(
                id=spec.id,
                summary=(inspect.getdoc(target) or "").partition("\n")[0],
                ours=module.partition(".")[0] == __package__,
                turns=_declared(target, "turns", Turns) or ("one" if spec.max_episode_steps == 1 else None),
                reward_source=_declared(target, "reward_source", RewardSource),
            )
        )
    return found


def describe_envs() -> str:
    """Return the list as text: this project's environments, then others."""
    entries = list_envs()
    ours = [line for entry in entries if entry.ours for line in _lines(entry)]
    others = [line for entry in entries if not entry.ours for line in _lines(entry)]
    nothing = ["  none is registered: an id of another package needs its module in front, as in my_module:my/Env-v0"]
    return "\n".join(["Of this project:", *ours, "", "Of others:", *(others or nothing)])


def _lines(entry: RegisteredEnv) -> list[str]:
    head = f"  {entry.id}  ({_TURNS[entry.turns]}, {_REWARDS[entry.reward_source]})"
    return [head, f"      {entry.summary}"] if entry.summary else [head]


def _target(spec: Any) -> Any:
    """The class or function that makes an environment; None for Gymnasium's own and for what is not installed."""
    entry_point = spec.entry_point
    place = entry_point if isinstance(entry_point, str) else getattr(entry_point, "__module__", "")
    if entry_point is None or place.partition(".")[0] == "gymnasium":  # none of Gymnasium's own speaks text
        return None
    try:
        return load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    except Exception:  # a third party's module may raise anything
        return None


def _speaks_text(target: Any, spec: Any) -> bool:
    if inspect.isclass(target) and issubclass(target, TextEnv):
        return True
    declared = [getattr(target, name, None) for name in ("observation_space", "action_space")]
    spaces = [space for space in declared if isinstance(space, gymnasium.Space)]
    if len(spaces) == 2 or any(not isinstance(space, Text) for space in spaces):  # the class itself tells
        return all(isinstance(space, Text) for space in spaces)
    try:
        env = gymnasium.make(spec)
    except Exception:  # arguments are missing, or a library or a licence
        return False
    with contextlib.suppress(Exception), contextlib.closing(env):
        return isinstance(env.observation_space, Text) and isinstance(env.action_space, Text)
    return False


def _declared(target: Any, name: str, allowed: Any) -> Any:
    value = getattr(target, name, None)
    return value if isinstance(value, str) and value in get_args(allowed) else None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    silence = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        warnings.simplefilter("ignore")
        yield
