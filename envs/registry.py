"""Registered text environments: this package's ids, and making any id by name. `listing` says what there is.

Importing `envs` registers the ids below with Gymnasium. Everything else goes through `make_text_env`, which refuses
environments that do not speak text. Batches are made by `vector`.
"""

from __future__ import annotations

import importlib
from typing import Any

import gymnasium
from gymnasium.spaces import Text

from envs.conversation import with_conversation
from envs.errors import TextEnvError
from envs.listing import list_envs
from reward_models.errors import UserError

_ENTRY_POINTS = {
    "rlhf/Dialogue-v0": "envs.tasks.dialogue:DialogueEnv",
    "rlhf/ProbeCopy-v0": "envs.tasks.probes:CopyProbe",
    "rlhf/ProbeDelay-v0": "envs.tasks.probes:DelayProbe",
    "rlhf/ProbeNoise-v0": "envs.tasks.probes:NoiseProbe",
    "rlhf/ProbeToken-v0": "envs.tasks.probes:TokenProbe",
    "rlhf/ProbeTwoTurns-v0": "envs.tasks.probes:TwoTurnsProbe",
    "rlhf/Prompts-v0": "envs.tasks.prompts:PromptsEnv",
}


def register_all() -> None:
    """Register this package's ids with Gymnasium, once."""
    for name, entry_point in _ENTRY_POINTS.items():
        if name not in gymnasium.registry:
            gymnasium.register(id=name, entry_point=entry_point)


def make_text_env(id: str, **kwargs: Any) -> Any:
    """Make the environment `id` and check that it speaks text.

    Args:
        id: A registered Gymnasium id, or `module:id`, which imports `module` first so that it can register the id.
        **kwargs: Arguments of `gymnasium.make` (such as `max_episode_steps`) and of the environment itself.

    Returns:
        A `gymnasium.Env[str, str]` whose infos hold `messages`, `prompt` and `columns`. If its action space admits only
        certain characters, responses outside it are handed over all the same: a policy cannot be held to them.

    Raises:
        TextEnvError: The id is not registered, its module cannot be imported, its constructor raises, or one of its
            spaces is not text.
    """
    env = _make(id, kwargs)
    try:
        check_text_spaces(env, str(id))
    except TextEnvError:
        env.close()
        raise
    return with_conversation(env)


def check_text_spaces(env: Any, name: str) -> None:
    """Raise `TextEnvError` unless observations and actions of `env`, which is called `name`, are text."""
    if not (isinstance(env.observation_space, Text) and isinstance(env.action_space, Text)):
        raise TextEnvError(
            f"{name} has the observation space {env.observation_space} and the action space {env.action_space}; both "
            "must be text (gymnasium.spaces.Text or envs.UnicodeText). Wrap it in TransformObservation and "
            "TransformAction of gymnasium.wrappers, so that it speaks text and understands responses, and register it."
        )


def _make(id: object, kwargs: dict[str, Any]) -> Any:
    if not isinstance(id, str) or id.count(":") > 1:
        raise TextEnvError(f"The environment id is {id!r}; it must be a registered Gymnasium id or 'module:id'.")
    module, _, name = id.rpartition(":")
    if module:
        _import(module, id)
    try:
        return gymnasium.make(name, **kwargs)
    except gymnasium.error.Error as error:
        known = ", ".join(env.id for env in list_envs())
        raise TextEnvError(
            f"{id!r} cannot be made: {error} Text environments that are registered: {known}. "
            "The id of another package needs its module in front, as in 'module:id'."
        ) from error
    except UserError:
        raise
    except Exception as error:
        # Gymnasium repeats a TypeError with the values of the arguments, which may be secret or long; not so its cause.
        cause = error.__cause__ if isinstance(error, TypeError) and error.__cause__ is not None else error
        raise TextEnvError(
            f"{id!r} cannot be made with the arguments {sorted(kwargs)}: {type(cause).__name__}: {cause}. Change "
            "ppo.environment.kwargs, or mend the environment (--debug shows where it was raised)."
        ) from error


def _import(module: str, id: str) -> None:
    try:
        importlib.import_module(module)
    except Exception as error:
        absent = isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}.")
        what = "cannot be found" if absent else f"cannot be imported: {type(error).__name__}: {error}"
        way_out = "Install it, or add its folder to PYTHONPATH." if absent else "Mend the module (--debug shows where)."
        raise TextEnvError(f"The environment id {id!r} names the module {module!r}, which {what}. {way_out}") from error
