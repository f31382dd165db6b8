"""A user's own code by its name in a config, `module:function` or `path/to/file.py:function`: found, and imported.

Reward functions (`registry`) and functions that give rows (`rlhf.data.functions`) are loaded here. What a function must
look like, and calling it, is their matter.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from hashlib import sha256
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from reward_models.errors import UserError
from reward_models.suggest import did_you_mean, paths_like

__all__ = ["load_callable", "source_files"]

_FORMS = "'module:function' or 'path/to/file.py:function'"


def load_callable(target: str, label: str, error_class: type[UserError]) -> Callable[..., Any]:
    """Import the module or file that `target` names and return what it names in it.

    A file is run anew each time, as a module of its own that may import its neighbours.

    Args:
        target: `module:function` or `path/to/file.py:function`.
        label: What the messages call it, such as `Reward 'my_rewards:polite'`.
        error_class: Of the error that is raised.

    Raises:
        UserError: There is no such module, file or function, it cannot be called, or importing it fails.
    """
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise error_class(f"{label}: name a function as {_FORMS}.")
    try:
        module = _import_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except _NoSuchFileError as error:
        raise error_class(f"{label}: {error}") from error
    except Exception as error:  # a user's module may raise anything while it is imported
        raise error_class(
            f"{label}: importing {place} fails: {type(error).__name__}: {error}. Install or mend it; allowed are "
            f"{_FORMS}."
        ) from error
    found = getattr(module, name, None)
    if found is None:
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        hint = did_you_mean(name, known) or f"it has {', '.join(known[:5]) or 'none'}."
        raise error_class(f"{label}: {place} has no function {name!r}; {hint}")
    if not callable(found):
        raise error_class(f"{label}: {name} is {found!r}, which cannot be called; name a function.")
    return cast(Callable[..., Any], found)


def source_files(target: str) -> list[Path]:
    """Find the file behind `module:function` or `path/to/file.py:function`, of a package all its files, sorted.

    Nothing is imported, not even the parents of a module. Empty if there is no such source.
    """
    place = target.rpartition(":")[0]
    if place.endswith(".py"):
        file = Path(place).expanduser()
        return [file] if file.is_file() else []
    source = _find_module(place)
    if source is None:
        return []
    return sorted(source.rglob("*.py")) if source.is_dir() else [source]


class _NoSuchFileError(Exception):
    pass


def _import_file(path: Path) -> ModuleType:
    given, path = path.expanduser(), path.expanduser().resolve()
    if not path.is_file():
        _, _, near = paths_like(given)
        hint = f" (did you mean {', '.join(map(str, near))}?)" if near else ""
        raise _NoSuchFileError(f"there is no file {given}{hint}. Relative paths start at {Path.cwd()}.")
    # A name of its own per path: two files called rewards.py do not replace each other, nor an installed module.
    name = f"_file_{path.stem}_{sha256(str(path).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None  # the suffix is .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up here
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # last, so that the file's neighbours can be imported but hide nothing
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _find_module(name: str) -> Path | None:
    """The file of a module or the folder of a package, found as an import would."""
    search: list[str] | None = [*sys.path, str(Path.cwd())]
    parts = name.split(".")
    for position in range(len(parts)):
        spec = PathFinder.find_spec(".".join(parts[: position + 1]), search)
        if spec is None:
            return None
        search = None if spec.submodule_search_locations is None else list(spec.submodule_search_locations)
        if position == len(parts) - 1:
            return Path(search[0]) if search else Path(spec.origin) if spec.origin else None
        if search is None:
            return None
    return None
