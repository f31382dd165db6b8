"""What the schema knows about a key: its field, what it allows, and which key a misspelt one was meant to be.

Used by `problems.py` for messages. Walks the pydantic sections; values are not looked at here.
"""

import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from reward_models.suggest import closest
from rlhf.config.base import Section
from rlhf.config.data import DataConfig, SourceConfig
from rlhf.config.schema import Config
from rlhf.config.yaml_reader import KeyPath

_SCALARS = {bool: "true or false", int: "an integer", float: "a number", str: "text", type(None): "null"}
_BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


@dataclass(frozen=True)
class Place:
    """A place in the schema.

    Attributes:
        path: The key, without what pydantic appends to it.
        annotation: The type of its value; None for an unknown key.
        field: Its field, if it is a key of a section and not an entry of a list or mapping.
        owner: The section that it stands in.
    """

    path: KeyPath
    annotation: Any
    field: FieldInfo | None
    owner: type[Section]


def dotted(path: KeyPath) -> str:
    """`("sft", "data", "sources", 0)` as `sft.data.sources.0`."""
    return ".".join(map(str, path))


def locate(path: KeyPath) -> Place:
    """Follows a path through the schema; ends where the schema does (unions, mappings of anything, unknown keys)."""
    place = Place((), Config, None, Config)
    for key in path:
        section = _section_of(place.annotation)
        if section is not None:
            field = section.model_fields.get(str(key))
            place = Place((*place.path, key), field.annotation if field else None, field, section)
            if field is None:
                return place
            continue
        inner = _entry_type(place.annotation, key)
        if inner is None:
            return place
        place = Place((*place.path, key), inner, None, place.owner)
    return place


def is_section(place: Place) -> bool:
    """Whether a place is a key of the schema that holds a section; entries of lists and mappings do not count."""
    return place.field is not None and _section_of(place.annotation) is not None


def allowed(place: Place) -> str:
    """What the schema allows at a place, in words: "an integer above 0, or null"."""
    metadata = place.field.metadata if place.field is not None else []
    forms = [_form(part, metadata) for part in _union(place.annotation)]
    return ", or ".join(forms)


def meant_key(path: KeyPath) -> str | None:
    """The key of the same section that an unknown key was probably meant to be."""
    return next(iter(closest(path[-1], _known_beside(path))), None)


def explain_unknown(path: KeyPath) -> str:
    """What to write instead of an unknown key."""
    meant = meant_key(path)
    if meant:
        return f"unknown key; did you mean {meant}?"
    name = str(path[-1])
    elsewhere = [key for key in _all_keys() if key.rpartition(".")[2] == name]
    if elsewhere:
        return f"unknown key here; did you mean {' or '.join(elsewhere)}?"
    deeper = closest(name, {key.rpartition(".")[2] for key in _all_keys()})
    hint = f" (elsewhere there is {deeper[0]})" if deeper else ""
    return f"unknown key{hint}; allowed here: {', '.join(_known_beside(path))}"


def choices(place: Place) -> list[str]:
    """The values of a `Literal`, as text."""
    return [str(value) for part in _union(place.annotation) if get_origin(part) is Literal for value in get_args(part)]


def _known_beside(path: KeyPath) -> list[str]:
    """The keys of the section that `path` stands in."""
    section = _section_of(locate(path[:-1]).annotation) or Config
    # A single source may be written without `sources`, its keys beside those of the section.
    return [*section.model_fields, *(SourceConfig.model_fields if issubclass(section, DataConfig) else ())]


def _union(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def _section_of(annotation: Any) -> type[Section] | None:
    for part in _union(annotation):
        if isinstance(part, type) and issubclass(part, Section):
            return part
    return None


def _entry_type(annotation: Any, key: str | int) -> Any:
    """The type of an entry of a list or mapping; None where the schema says nothing about it."""
    parts = [part for part in _union(annotation) if part is not type(None)]
    if len(parts) != 1:
        return None
    if get_origin(parts[0]) is list and isinstance(key, int):
        return get_args(parts[0])[0]
    if get_origin(parts[0]) is dict and get_args(parts[0])[1] not in (Any, object):
        return get_args(parts[0])[1]
    return None


def _form(annotation: Any, metadata: list[Any]) -> str:
    section = _section_of(annotation)
    if section is not None:
        keys = f"a section with the keys {', '.join(section.model_fields)}"
        return f"a data path, or {keys}" if issubclass(section, DataConfig) else keys
    if get_origin(annotation) is Literal:
        values = ["null" if value is None else str(value) for value in get_args(annotation)]
        return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
    if get_origin(annotation) is list:
        entries = "sections" if _section_of(get_args(annotation)[0]) else "texts"
        return f"a list of {entries}{_bounds(metadata)}"
    if get_origin(annotation) is dict:
        return "a section of names and values"
    if annotation is type(None):
        return _SCALARS[annotation]
    return _SCALARS.get(annotation, str(annotation)) + _bounds(metadata)


def _bounds(metadata: list[Any]) -> str:
    words = [
        f"{word} {getattr(entry, name)}"
        for entry in metadata
        for name, word in _BOUNDS.items()
        if getattr(entry, name, None) is not None
    ]
    lengths = [entry.min_length for entry in metadata if getattr(entry, "min_length", None)]
    patterns = [entry.pattern for entry in metadata if getattr(entry, "pattern", None)]
    text = f" {' and '.join(words)}" if words else ""
    text += "".join(f" with at least {length} {'entry' if length == 1 else 'entries'}" for length in lengths)
    return text + "".join(f" of the form {pattern}" for pattern in patterns)


@cache
def _all_keys() -> tuple[str, ...]:
    """Every key of the schema, dotted; NAME stands for a name that the user chooses."""
    return tuple(_keys_of(Config, ""))


def _keys_of(section: type[Section], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        for part in _union(field.annotation):
            entry = {list: ".0", dict: ".NAME"}.get(get_origin(part) or part, "")
            inner = _section_of(get_args(part)[-1] if entry and get_args(part) else part)
            if inner is not None:
                yield from _keys_of(inner, f"{prefix}{name}{entry}.")
