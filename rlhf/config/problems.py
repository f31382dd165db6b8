"""Checks the raw configuration against the schema and says in words what is wrong, everything at once.

Pydantic finds the mistakes; here each becomes a `Problem` with its dotted key, where it was written, the value
received, what is allowed and the way out. Checks across keys run only where the keys themselves are right and stop at
the first mistake, so the check is repeated without the keys that were wrong, until nothing new is found.
"""

import copy
import re
from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails, PydanticUndefined

from reward_models.suggest import did_you_mean
from rlhf.config.keys import Place, allowed, choices, explain_unknown, is_section, locate, meant_key
from rlhf.config.schema import Config
from rlhf.config.tree import Problem, Tree, format_short
from rlhf.config.yaml_reader import KeyPath, format_value

_CROSS_FIELD = "value_error"


def check(tree: Tree) -> Config | list[Problem]:
    """The configuration, or all that is wrong with it."""
    config, errors = _validate(tree.data)
    if config is not None and not tree.problems:
        return config
    data, found = copy.deepcopy(tree.data), list(tree.problems)
    left_out = [problem.path for problem in found if problem.path and _value_at(data, problem.path) is None]
    while errors:
        problems = _problems(errors, tree)
        found += [problem for problem in problems if not _is_about(problem, left_out) and problem not in found]
        removed = [path for path in _wrong_keys(errors, problems) if _remove(data, path)]
        if not removed:
            break
        left_out += [kept for path in removed for kept in (path, (*path[:-1], meant_key(path) or path[-1]))]
        errors = _validate(data)[1]
    return found


def _validate(data: dict[str, Any]) -> tuple[Config | None, list[ErrorDetails]]:
    try:
        # Strict: "8" is no number and 1 is not true, also where Python could make one of the other.
        return Config.model_validate(data, strict=True), []
    except ValidationError as error:
        return None, error.errors(include_url=False)


def _problems(errors: Sequence[ErrorDetails], tree: Tree) -> list[Problem]:
    found: dict[tuple[KeyPath, str], Problem] = {}
    for error in errors:
        for problem in _explain(error, tree):
            found.setdefault((problem.path, problem.message), problem)  # a union has an error for each of its members
    return list(found.values())


def _explain(error: ErrorDetails, tree: Tree) -> list[Problem]:
    path: KeyPath = tuple(error["loc"])
    if error["type"] == _CROSS_FIELD:
        messages = str(error["ctx"]["error"]).splitlines()
        return [Problem(path, message, _origin_of_mentioned(path, message, tree)) for message in messages]
    if error["type"] == "extra_forbidden":
        return [Problem(path, explain_unknown(path), tree.origin_of(path))]
    place = locate(path)
    if error["type"] == "missing":
        about = f" ({place.field.description})" if place.field is not None and place.field.description else ""
        message = f"missing; it is required{about}: {allowed(place)}"
    else:
        message = _wrong_value(_value_at(tree.data, place.path), place)
    return [Problem(place.path, message, tree.origin_of(place.path))]


def _wrong_value(received: Any, place: Place) -> str:
    message = f"got {format_short(received)}; allowed: {allowed(place)}"
    meant = did_you_mean(received, choices(place)) if isinstance(received, str) else ""
    if meant:
        return f"{message}; {meant}"
    if isinstance(received, str) and re.fullmatch(r"[-+\d._eE]+", received):
        message += "; write numbers without quotes"
    default = place.field.default if place.field is not None else PydanticUndefined
    if isinstance(default, bool | int | float | str):
        message += f"; the default is {format_value(default)}"
    return message


def _value_at(data: Any, path: KeyPath) -> Any:
    """The value at a path; None if there is none."""
    for key in path:
        if isinstance(data, dict):
            data = data.get(key)
        else:
            data = data[key] if isinstance(data, list) and isinstance(key, int) and key < len(data) else None
    return data


def _mentioned(path: KeyPath, message: str) -> list[KeyPath]:
    """The words of a message about a section, as keys of that section."""
    return [(*path, *word.split(".")) for word in re.findall(r"\w[\w.]*\w", message)]


def _origin_of_mentioned(path: KeyPath, message: str, tree: Tree) -> str | None:
    """Where the first key stands that a message about a section mentions; else where the section stands."""
    for mentioned in _mentioned(path, message):
        while len(mentioned) > len(path):
            if mentioned in tree.origins:
                return tree.origins[mentioned]
            mentioned = mentioned[:-1]
    return tree.origin_of(path)


def _wrong_keys(errors: Sequence[ErrorDetails], problems: Sequence[Problem]) -> list[KeyPath]:
    """Keys without which the next round may find more: wrong ones, and those that do not go together."""
    alone = [locate(tuple(error["loc"])).path for error in errors if error["type"] != _CROSS_FIELD]
    sections = {tuple(error["loc"]) for error in errors if error["type"] == _CROSS_FIELD}
    together = [_mentioned(problem.path, problem.message) for problem in problems if problem.path in sections]
    return alone + [path for paths in together for path in paths]


def _remove(data: dict[str, Any], path: KeyPath) -> bool:
    """Removes a key, if it is there; not a whole section, without which other checks would mean something else."""
    container = _value_at(data, path[:-1])
    if not path or not isinstance(container, dict) or path[-1] not in container or is_section(locate(path)):
        return False
    del container[path[-1]]
    return True


def _is_about(problem: Problem, left_out: Sequence[KeyPath]) -> bool:
    """Whether a problem is one of a key that was left out, or its message mentions such a key."""
    about = [problem.path, *_mentioned(problem.path, problem.message)]
    return any(
        path[: len(key)] == key or (len(path) > len(problem.path) and key[: len(path)] == path)
        for key in left_out
        for path in about
    )
