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

_ENTRY_POINTS = {
    "rlhf/Dialogue-v0": "envs.tasks.dialogue:DialogueEnv",
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
        TextEnvError: The id is not registered, its module cannot be imported, the arguments do not fit, or one of its
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
    except TypeError as error:
        # Gymnasium re-raises what the constructor raised. Without an inner frame the call itself failed: wrong
        # arguments. With one, the constructor has a bug, which must keep its traceback.
        if error.__cause__ is None or error.__cause__.__traceback__ is None or error.__cause__.__traceback__.tb_next:
            raise
        raise TextEnvError(f"{id!r} does not take the arguments {sorted(kwargs)}: {error.__cause__}.") from error


def _import(module: str, id: str) -> None:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):  # the module is there, but something that it imports is not
            raise
        raise TextEnvError(
            f"The environment id {id!r} names the module {module!r}, which cannot be found. "
            "Install it, or add its folder to PYTHONPATH."
        ) from error
