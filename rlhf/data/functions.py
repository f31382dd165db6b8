"""Rows from a Python function that the user names: `module:function` or `path/to/file.py:function`.

One of the sources of `load.py`. What the function returns is taken row by row; nothing about its columns is assumed.
"""

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from reward_models.loading import load_callable
from rlhf.data.raw import RawRow
from rlhf.errors import DataError


def read_function(target: str, args: Mapping[str, Any]) -> Iterator[RawRow]:
    """Call the function and take its rows.

    Args:
        target: `module:function` or `path/to/file.py:function`.
        args: Keyword arguments of the function.

    Raises:
        DataError: If it cannot be imported or called, raises, or returns no iterable of rows.
    """
    function = load_callable(target, target, DataError)
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


def _function_row(values: Any, place: str) -> RawRow:
    if not isinstance(values, Mapping):
        return RawRow(place, {}, f"the function yielded {type(values).__name__} instead of a dict {{column: value}}")
    return RawRow(place, dict(values))
