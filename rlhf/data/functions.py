"""Rows from a Python function that the user names: `module:function` or `path/to/file.py:function`.

One of the sources of `load.py`. What the function returns is taken row by row; nothing about its columns is assumed.
"""

import difflib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any, cast

from rlhf.data.files import RawRow, missing_file
from rlhf.errors import DataError


def read_function(target: str, args: Mapping[str, Any]) -> Iterator[RawRow]:
    """Call the function and take its rows.

    Args:
        target: `module:function` or `path/to/file.py:function`.
        args: Keyword arguments of the function.

    Raises:
        DataError: If it cannot be imported or called, raises, or returns no iterable of rows.
    """
    function = find_function(target)
    try:
        inspect.signature(function).bind(**args)
    except TypeError as error:
        raise DataError(
            f"{target}: {error}; its signature is {inspect.signature(function)}. Give these as `args`."
        ) from error
    try:
        result = function(**args)
        # A dict (also a DatasetDict) and a string iterate, but over keys and characters.
        if isinstance(result, Mapping | str | bytes) or not hasattr(result, "__iter__"):
            raise DataError(
                f"{target} returned {type(result).__name__}; it must return an iterable of dicts or a datasets.Dataset"
            )
        for number, values in enumerate(result, start=1):
            yield _function_row(values, f"{target}, row {number}")
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{target} raised {type(error).__name__}: {error}. Mend the function or its `args`.") from error


def find_function(target: str) -> Callable[..., Any]:
    """Import the module or file of `target` and get the function out of it.

    Raises:
        DataError: If there is no such module, file or function, or importing it fails.
    """
    place, _, name = target.rpartition(":")
    module = _import_file(Path(place), target) if place.endswith(".py") else _import_module(place, target)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        near = difflib.get_close_matches(name, known, n=3) or known[:5]
        raise DataError(f"{target}: {place} has no function {name!r}; it has {', '.join(near) or 'none'}.")
    return cast(Callable[..., Any], function)


def function_hash(target: str) -> str:
    """Hash of the source file that `target` stands in (not of what the function reads in its turn)."""
    function = find_function(target)
    module = sys.modules.get(function.__module__)
    source = inspect.getsourcefile(inspect.unwrap(function)) or getattr(module, "__file__", None)
    return sha256(Path(source).read_bytes() if source else target.encode()).hexdigest()


def _function_row(values: Any, place: str) -> RawRow:
    if not isinstance(values, Mapping):
        return RawRow(place, {}, f"the function yielded {type(values).__name__} instead of a dict {{column: value}}")
    return RawRow(place, dict(values))


def _import_module(name: str, target: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # a user's module may raise anything while it is imported
        raise DataError(
            f"{target}: cannot import {name}: {type(error).__name__}: {error}. Install it, or give the file: "
            "path/to/file.py:function."
        ) from error


def _import_file(path: Path, target: str) -> ModuleType:
    path = path.expanduser().resolve()
    if not path.is_file():
        raise missing_file(path, target)
    name = f"rlhf_source_{sha256(str(path).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # the suffix is .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look the module up while it runs
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))  # its neighbours can be imported; last, so that they hide nothing
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise DataError(f"{target}: running {path} raised {type(error).__name__}: {error}. Mend the file.") from error
    return module
