"""From the name in a config to a reward function: built-in rules, functions of modules and functions of files.

`load_function` is called once per component before a run starts, so that a misspelt name or argument costs no training.
It imports what the user names and nothing else, and never calls a reward function.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from reward_models.errors import RewardError, UserError
from reward_models.loading import load_callable
from reward_models.protocol import RewardFunction
from reward_models.suggest import did_you_mean

_Target = TypeVar("_Target", bound=Callable[..., Any])

_REWARD_ARGUMENTS = frozenset({"prompts", "completions", "completion_ids"})
_BUILT_IN: dict[str, Callable[..., Any]] = {}


def register(name: str) -> Callable[[_Target], _Target]:
    """Make the decorated reward function, or factory of one, available to configs under a short name."""

    def add(target: _Target) -> _Target:
        assert name not in _BUILT_IN, f"two rewards are called {name!r}"
        _BUILT_IN[name] = target
        return target

    return add


def registered() -> dict[str, Callable[..., Any]]:
    """Return the built-in rewards by their short names."""
    importlib.import_module("reward_models.rules")  # it registers its rules when imported
    return dict(_BUILT_IN)


def describe_rewards() -> str:
    """Return the built-in rewards as text: name, arguments and the first line of the docstring."""
    lines = []
    for name, function in sorted(registered().items()):
        arguments = str(inspect.signature(function)).partition(" -> ")[0].replace("'", "")
        lines += [f"{name}{arguments}", f"    {(inspect.getdoc(function) or '').partition(chr(10))[0]}"]
    return "\n".join(lines)


def load_function(target: str, args: Mapping[str, Any] | None = None) -> RewardFunction:
    """Return the reward function that `target` names, with `args` bound.

    A function that takes `prompts`, `completions` or `completion_ids`, or any keyword, is a reward function: `args` are
    bound as keyword arguments and win over a data column of the same name. Anything else is a factory: it is called
    with `args` now and returns the reward function.

    Args:
        target: `"module:function"`, `"path/to/file.py:function"` or the short name of a built-in reward.
        args: Arguments by name.

    Raises:
        RewardError: Nothing is found under that name, an argument is unknown or missing, or what is found does not have
            the form of a reward function.
    """
    args = dict(args or {})
    function = _find(target)
    parameters = _parameters(function, target)
    _check_args(parameters, target, args)
    if not _has_reward_form(parameters):
        function = _build(function, target, args)
        parameters, args = _parameters(function, target), {}
    _check_form(parameters, target)
    return _bind(function, args) if args else function


def _find(target: str) -> Any:
    if ":" in target:
        return load_callable(target, f"Reward {target!r}", RewardError)
    built_in = registered()
    if target not in built_in:
        raise RewardError(
            f"There is no built-in reward {target!r}{_hint(target, built_in)}. Built in are: "
            f"{', '.join(sorted(built_in))}. A function of your own is named as 'module:function' or "
            "'path/to/file.py:function'."
        )
    return built_in[target]


def _parameters(function: Any, target: str) -> Mapping[str, inspect.Parameter]:
    if not callable(function):
        raise RewardError(f"Reward {target!r} is {function!r}, which cannot be called; name a function.")
    try:
        return inspect.signature(function).parameters
    except ValueError as error:
        raise RewardError(f"Reward {target!r} shows no signature; wrap it in a Python function.") from error


def _takes_any_keyword(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())


def _has_reward_form(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return bool(_REWARD_ARGUMENTS & set(parameters)) or _takes_any_keyword(parameters)


def _build(factory: Callable[..., Any], target: str, args: dict[str, Any]) -> Any:
    try:
        return factory(**args)
    except UserError:
        raise
    except Exception as error:
        raise RewardError(
            f"Reward {target!r} takes none of {', '.join(sorted(_REWARD_ARGUMENTS))}, so it was called as a factory "
            f"with args {args}, which failed: {error}. Its signature is {inspect.signature(factory)}."
        ) from error


def _check_form(parameters: Mapping[str, inspect.Parameter], target: str) -> None:
    if not _takes_any_keyword(parameters):
        raise RewardError(
            f"Reward {target!r} takes ({', '.join(parameters)}) and no **kwargs, but every column of the data is "
            "passed to it. Add **kwargs to its arguments."
        )


def _check_args(parameters: Mapping[str, inspect.Parameter], target: str, args: dict[str, Any]) -> None:
    named = {
        name
        for name, parameter in parameters.items()
        if parameter.kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    }
    allowed = named - _REWARD_ARGUMENTS
    for name in args:
        if name not in allowed:
            raise RewardError(
                f"Reward {target!r} has no argument {name!r}{_hint(name, allowed)}. "
                f"Allowed are: {', '.join(sorted(allowed)) or 'none'}."
            )


def _bind(function: Callable[..., Any], args: dict[str, Any]) -> RewardFunction:
    if is_async(function):

        @functools.wraps(function)
        async def bound_async(**columns: Any) -> Any:
            return await function(**{**columns, **args})

        return bound_async

    @functools.wraps(function)
    def bound(**columns: Any) -> Any:
        return function(**{**columns, **args})

    return bound


def is_async(function: Callable[..., Any]) -> bool:
    """Return whether a call of `function`, or of its `__call__` method, has to be awaited."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _hint(name: str, known: Iterable[str]) -> str:
    meant = did_you_mean(name, known)
    return f" ({meant})" if meant else ""
