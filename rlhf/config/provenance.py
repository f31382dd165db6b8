"""Where each value of a configuration came from, and the resolved file that says so.

`load.py` asks for both. The resolved file holds every key, defaults included, so that a run can be repeated after
defaults have changed.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from rlhf.config.keys import dotted
from rlhf.config.schema import Config
from rlhf.config.yaml_reader import KeyPath, format_value

DEFAULT = "default"


def provenance_of(config: Config, origins: Mapping[KeyPath, str]) -> dict[str, str]:
    """Dotted key of each value -> `default`, `FILE:LINE` or `override`."""
    return {dotted(path): origins.get(path, DEFAULT) for path, _ in _leaves(config.model_dump(), ())}


def annotated_yaml(config: Config, provenance: Mapping[str, str]) -> str:
    """The whole configuration as YAML; a comment behind each value says where it came from."""
    head = "# Every key of this run, defaults included. Behind each value: where it came from.\n"
    return head + "\n".join(_lines(config.model_dump(), (), provenance)) + "\n"


def _leaves(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    """Values without keys of their own: scalars, lists of scalars, and what is empty."""
    entries = _entries(value)
    if entries is None:
        yield path, value
        return
    for key, entry in entries:
        yield from _leaves(entry, (*path, key))


def _entries(value: Any) -> list[tuple[str | int, Any]] | None:
    if isinstance(value, dict) and value:
        return list(value.items())
    if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        return list(enumerate(value))
    return None


def _lines(value: Any, path: KeyPath, provenance: Mapping[str, str]) -> Iterator[str]:
    indent = "  " * len(path)
    for key, entry in _entries(value) or ():
        inner = (*path, key)
        label = "-" if isinstance(key, int) else f"{format_value(key)}:"
        if _entries(entry) is None:
            yield f"{indent}{label} {format_value(entry)}  # {provenance[dotted(inner)]}"
            continue
        lines = _lines(entry, inner, provenance)
        if isinstance(key, int):  # the dash takes the place of the first line's last indent
            yield f"{indent}- {next(lines).removeprefix(indent + '  ')}"
        else:
            yield f"{indent}{label}"
        yield from lines
