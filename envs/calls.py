"""Calls of environments: what they return is checked, several may run at the same time, and none may hang the caller.

Environments of third parties may raise, answer with the old four-tuple or with arrays, or never answer. What a failure
costs is decided in `vector`; here it only becomes an error that says what was returned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Real
from typing import Any, TypeVar

import gymnasium
import numpy as np

from envs.errors import TextEnvError
from reward_models.workers import call_in_thread

Result = TypeVar("Result")

_OLD_FORM = "Four values are the form of old Gym: part 'done' into terminated and truncated."


def explained(error: Exception) -> str:
    """An error in words: what the environment returned, or what it raised."""
    if isinstance(error, TextEnvError):
        return str(error)
    # Gymnasium's wrappers take the answer of a step apart before it is seen here.
    hint = f". {_OLD_FORM}" if "expected 5, got 4" in str(error) else ""
    return f"{type(error).__name__}: {error}{hint}"


def name_of(env: Any) -> str:
    """What messages call an environment: its id, or its class."""
    inner = env.unwrapped if isinstance(env, gymnasium.Env) else env
    spec = getattr(inner, "spec", None)
    return str(spec.id) if spec is not None else type(inner).__name__


def checked_reset(env: Any, seed: int | None, options: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """Call `reset`.

    Raises:
        TextEnvError: It did not return the observation, a string, and an info.
    """
    return reset_parts(env.reset(seed=seed, options=options), env)


def checked_step(env: Any, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
    """Call `step`.

    Raises:
        TextEnvError: It did not return observation, reward, terminated, truncated and info.
    """
    return step_parts(env.step(action), env)


def reset_parts(result: Any, env: Any) -> tuple[str, dict[str, Any]]:
    """Return what `env` gave back from `reset`, checked; see `checked_reset`."""
    if not isinstance(result, tuple) or len(result) != 2:
        raise TextEnvError(f"reset of {name_of(env)} returned {_shape(result)}; it must return (observation, info).")
    observation, info = result
    return _text(observation, env), _info(info, env)


def step_parts(result: Any, env: Any) -> tuple[str, float, bool, bool, dict[str, Any]]:
    """Return what `env` gave back from `step`, checked; see `checked_step`."""
    if not isinstance(result, tuple) or len(result) != 5:
        old = f" {_OLD_FORM}" if isinstance(result, tuple) and len(result) == 4 else ""
        raise TextEnvError(
            f"step of {name_of(env)} returned {_shape(result)}; it must return (observation, reward, terminated, "
            f"truncated, info).{old}"
        )
    observation, reward, terminated, truncated, info = result
    flags = [_flag(terminated, "terminated", env), _flag(truncated, "truncated", env)]
    return _text(observation, env), _number(reward, env), flags[0], flags[1], _info(info, env)


def run_all(
    calls: Sequence[Callable[[], Result]], workers: int = 1, timeout_seconds: float | None = None
) -> list[Result | Exception]:
    """Make several calls, and return their results in order; what a call raised stands in the place of its result.

    Args:
        calls: What to call.
        workers: How many run at the same time, in threads.
        timeout_seconds: A call that takes longer gives a TimeoutError. Python cannot stop it: it goes on, unheard.
    """

    def outcome(call: Callable[[], Result]) -> Result | Exception:
        try:
            return call() if timeout_seconds is None else call_in_thread(call, timeout_seconds)
        except Exception as error:
            return error

    if workers == 1 or len(calls) < 2:
        return [outcome(call) for call in calls]
    with ThreadPoolExecutor(min(workers, len(calls))) as pool:
        return list(pool.map(outcome, calls))


def _text(observation: Any, env: Any) -> str:
    if not isinstance(observation, str):
        raise TextEnvError(
            f"{name_of(env)} returned an observation of type {_shape(observation)}; a text environment returns strings."
        )
    return str(observation)  # np.str_ is a str too, but not one that JSON and Parquet writers all take


def _number(reward: Any, env: Any) -> float:
    if not isinstance(reward, Real | np.bool_) or not math.isfinite(reward):
        what = f"the reward {reward}" if isinstance(reward, Real) else f"a reward of type {_shape(reward)}"
        raise TextEnvError(f"{name_of(env)} returned {what}; it must be one finite number.")
    return float(reward)


def _flag(value: Any, name: str, env: Any) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TextEnvError(f"{name_of(env)} returned {name} of type {_shape(value)}; it must be True or False.")
    return bool(value)


def _info(info: Any, env: Any) -> dict[str, Any]:
    if not isinstance(info, dict):
        raise TextEnvError(f"{name_of(env)} returned an info of type {_shape(info)}; it must be a dict.")
    return info


def _shape(value: Any) -> str:
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    if isinstance(value, np.ndarray):
        return f"ndarray of shape {value.shape}"
    return type(value).__name__
