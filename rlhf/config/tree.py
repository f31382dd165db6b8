"""The raw configuration: plain data with the origin of each key, after the file and the command line, before checking.

`load.py` fills it from YAML and `key.path=value` overrides; `problems.py` checks it against the schema. The short forms
of a `data` section (a path, or the keys of its only source) are written out here, so that what follows knows one form.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf.config.data import SourceConfig
from rlhf.config.keys import dotted
from rlhf.config.yaml_reader import Document, KeyPath, parse_scalar
from rlhf.errors import ConfigError
from rlhf.files.run_folder import STAGES

OVERRIDE = "override"


@dataclass(frozen=True)
class Problem:
    """One mistake.

    Attributes:
        path: The key it is about; empty if it is about the whole file.
        message: What is wrong and what is allowed.
        origin: `FILE:LINE` or `override` of the key or its section, None if it is written nowhere.
    """

    path: KeyPath
    message: str
    origin: str | None


@dataclass
class Tree:
    """The raw configuration.

    Attributes:
        data: Nested mappings, lists and scalars.
        origins: Path of every key and list entry that was given -> `FILE:LINE` or `override`.
        problems: What was refused so far.
    """

    data: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def origin_of(self, path: KeyPath) -> str | None:
        """Origin of a key, or of the nearest section around it that was given."""
        while path and path not in self.origins:
            path = path[:-1]
        return self.origins.get(path)


def from_document(document: Document, name: str) -> Tree:
    """The tree of a YAML file called `name`."""
    tree = Tree(origins={path: f"{name}:{line}" for path, line in document.lines.items()})
    tree.problems += [Problem(fault.path, fault.message, f"{name}:{fault.line}") for fault in document.faults]
    if isinstance(document.value, dict):
        tree.data = document.value
    elif document.value is not None:
        message = f"got {format_short(document.value)}; a config is a section with keys such as `model:`"
        tree.problems.append(Problem((), message, f"{name}:1"))
    _write_out_data(tree)
    return tree


def apply_overrides(tree: Tree, overrides: Sequence[str]) -> None:
    """Sets `key.path=value` for each override, in order; what cannot be set becomes a problem of the tree."""
    for override in overrides:
        dotted_key, equals, text = override.partition("=")
        parts = dotted_key.strip().split(".")
        if not equals or not all(parts):
            message = f"{override!r} is no override: write key.path=value, e.g. ppo.learning_rate=1e-5"
            tree.problems.append(Problem((), message, OVERRIDE))
            continue
        try:
            value = parse_scalar(text)
        except ConfigError as error:
            message = f"value {text!r} cannot be read: {error}. Quote it: {dotted_key}='\"...\"'"
            tree.problems.append(Problem(tuple(parts), message, OVERRIDE))
            continue
        _set(tree, parts, value)
        _write_out_data(tree)


def format_short(value: Any) -> str:
    """A value as an error message shows it."""
    if isinstance(value, str):
        shown = value if len(value) <= 60 else f"{value[:57]}..."
        return f"'{shown}' (text)"
    if isinstance(value, dict):
        return "a section" if value else "an empty section"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    return str(value)


def _set(tree: Tree, parts: list[str], value: Any) -> None:
    path: KeyPath = ()
    container: Any = tree.data
    parts = _into_only_source(tree.data, parts)
    for position, part in enumerate(parts):
        last = position == len(parts) - 1
        key: str | int = part
        if isinstance(container, list):
            if not part.isdecimal() or int(part) > len(container):
                message = f"{part!r} is no index: {dotted(path)} is a list of {len(container)}; allowed: 0 to "
                message += f"{len(container)}, which appends"
                tree.problems.append(Problem(path, message, OVERRIDE))
                return
            key = int(part)
            if key == len(container):
                container.append(None)
        path = (*path, key)
        if last:
            container[key] = value
            break
        container = _enter(tree, container, key, path)
        if container is None:
            return
    _mark(tree, path, value)


def _enter(tree: Tree, container: Any, key: str | int, path: KeyPath) -> Any:
    """The mapping or list at `key`, made if there is nothing; None and a problem if there is a value."""
    inner = container.get(key) if isinstance(container, dict) else container[key]
    if inner is None:
        inner = container[key] = {}
        tree.origins[path] = OVERRIDE
    if not isinstance(inner, dict | list):
        message = f"{dotted(path)} is {format_short(inner)}, which has no keys of its own"
        tree.problems.append(Problem(path, message, OVERRIDE))
        return None
    return inner


def _mark(tree: Tree, path: KeyPath, value: Any) -> None:
    """The value at `path` and all in it come from the command line."""
    for known in [known for known in tree.origins if known[: len(path)] == path]:
        del tree.origins[known]
    tree.origins[path] = OVERRIDE
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        _mark(tree, (*path, key), entry)


def _into_only_source(data: dict[str, Any], parts: list[str]) -> list[str]:
    """`sft.data.path` means the path of the only source, as it does in a file."""
    if len(parts) < 3 or parts[0] not in STAGES or parts[1] != "data":
        return parts
    section = data.get(parts[0])
    rows = section.get("data") if isinstance(section, dict) else None
    sources = rows.get("sources") if isinstance(rows, dict) else None
    if parts[2] in SourceConfig.model_fields and isinstance(sources, list) and len(sources) == 1:
        return [*parts[:2], "sources", "0", *parts[2:]]
    return parts


def _write_out_data(tree: Tree) -> None:
    """Brings `data: file` and `data: {path: file}` into the form `data: {sources: [{path: file}]}`."""
    for stage in STAGES:
        section: Any = tree.data.get(stage)
        given = section.get("data") if isinstance(section, dict) else None
        path: KeyPath = (stage, "data")
        if isinstance(given, str):
            origin = tree.origins[path]
            section["data"] = {"sources": [{"path": given}]}
            for inner in ((), ("sources",), ("sources", 0), ("sources", 0, "path")):
                tree.origins[(*path, *inner)] = origin
        elif isinstance(given, dict) and "path" in given and "sources" not in given:
            source = {key: given.pop(key) for key in SourceConfig.model_fields if key in given}
            given["sources"] = [source]
            origin = tree.origins[(*path, "path")]
            for known in [known for known in tree.origins if known[:2] == path and known[2:3] and known[2] in source]:
                tree.origins[(*path, "sources", 0, *known[2:])] = tree.origins.pop(known)
            tree.origins[(*path, "sources")] = tree.origins[(*path, "sources", 0)] = origin
