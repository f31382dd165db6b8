"""Reads YAML strictly and remembers the line of every key: the first step of `load.py`.

Scalars are those of YAML 1.2's core schema, in which `1e-5` is a number and `on`, `off`, `yes` and `no` are text.
Duplicate keys, keys that are not text, foreign tags and anchors that hold themselves are refused. What keys mean is not
known here.
"""

import re
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from rlhf.errors import ConfigError

KeyPath: TypeAlias = tuple[str | int, ...]

_TAG = "tag:yaml.org,2002:"
_SCALARS = (
    ("null", r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+"
        r"|\.(?:inf|nan))",
        list("-+.0123456789"),
    ),
    ("merge", "<<", ["<"]),
)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the scalars of YAML 1.2."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  (PyYAML reads it from the class)


class _Dumper(yaml.SafeDumper):
    """Quotes text that a reader of YAML 1.1 or of YAML 1.2 would take for something else."""

    yaml_implicit_resolvers = {key: list(value) for key, value in yaml.SafeDumper.yaml_implicit_resolvers.items()}  # noqa: RUF012


for _name, _pattern, _first in _SCALARS:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"{_TAG}{_name}", re.compile(f"^{_pattern}$"), _first)


@dataclass(frozen=True)
class Fault:
    """Something in a YAML file that is refused, and its line."""

    path: KeyPath
    line: int
    message: str


@dataclass
class Document:
    """A YAML text as plain data.

    Attributes:
        value: Mappings, lists and scalars.
        lines: Path of every key and list entry -> its line, counted from 1.
        faults: What was refused; `value` lacks it.
    """

    value: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


def read_yaml(text: str) -> Document:
    """Reads one YAML document.

    Raises:
        ConfigError: It is not YAML; the message begins with the line.
    """
    document = Document()
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_syntax_message(error)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"line {line}: character {error.character!r} is not allowed in YAML: remove it") from None
    if node is not None:
        document.value = _Builder(loader, document).build(node, ())
    return document


def parse_scalar(text: str) -> Any:
    """The value of a command line's `key=value`: a scalar, or a list or mapping in flow style.

    Raises:
        ConfigError: It is not YAML, or something in it is refused.
    """
    document = read_yaml(text)
    if document.faults:
        raise ConfigError(document.faults[0].message)
    return document.value


def format_value(value: Any) -> str:
    """One line of YAML that `parse_scalar` reads back as the same value."""
    # As an entry of a list, so that text with a comma, bracket or colon is quoted where flow style needs it.
    width = 2**31
    return yaml.dump([value], Dumper=_Dumper, default_flow_style=True, width=width, allow_unicode=True)[1:-2]


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    one_line = text.isprintable() and text == text.strip()
    return dumper.represent_scalar(f"{_TAG}str", text, style=None if one_line else '"')


_Dumper.add_representer(str, _represent_text)


class _Builder:
    """Turns YAML nodes into plain data, noting lines and faults in the document."""

    def __init__(self, loader: _Loader, document: Document) -> None:
        self._loader = loader
        self._document = document
        self._open: set[int] = set()  # nodes that are being built: one that is met again holds itself

    def build(self, node: yaml.Node, path: KeyPath) -> Any:
        """The value of a node."""
        if id(node) in self._open:
            return self._refuse(node, path, "an anchor that holds itself: write the values out")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode) and node.tag == f"{_TAG}map":
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
                return [self._entry(child, (*path, index)) for index, child in enumerate(node.value)]
            if isinstance(node, yaml.ScalarNode):
                return self._loader.construct_object(node)
        except (yaml.YAMLError, ValueError):
            pass  # a tag that is not known, or that does not fit its scalar
        finally:
            self._open.discard(id(node))
        return self._refuse(node, path, f"tag {node.tag.replace(_TAG, '!!')} is not read here: remove it")

    def _entry(self, node: yaml.Node, path: KeyPath) -> Any:
        self._document.lines[path] = node.start_mark.line + 1
        return self.build(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        values: dict[str, Any] = {}
        merged: list[yaml.Node] = []
        for key_node, value_node in node.value:
            if key_node.tag == f"{_TAG}merge":
                merged += value_node.value if isinstance(value_node, yaml.SequenceNode) else [value_node]
                continue
            line = key_node.start_mark.line + 1
            key = self.build(key_node, path)
            if not isinstance(key, str):
                self._refuse(key_node, path, f"key {key!r} is not text: quote it")
            elif key in values:
                first = self._document.lines[(*path, key)]
                self._refuse(key_node, (*path, key), f"the key stands here again, after line {first}: remove one")
            else:
                self._document.lines[(*path, key)] = line
                values[key] = self.build(value_node, (*path, key))
        for source in merged:
            self._merge(source, values, path)
        return values

    def _merge(self, source: yaml.Node, values: dict[str, Any], path: KeyPath) -> None:
        """`<<: *anchor`: the anchor's keys that the mapping does not have itself."""
        if not isinstance(source, yaml.MappingNode):
            self._refuse(source, path, "<< merges mappings only")
            return
        lines, depth = self._document.lines, len(path)
        before, own = dict(lines), set(values)
        values.update({key: value for key, value in self._mapping(source, path).items() if key not in own})
        hidden = [key for key in lines if key[:depth] == path and len(key) > depth and key[depth] in own]
        for key in hidden:
            del lines[key]
        lines.update(before)

    def _refuse(self, node: yaml.Node, path: KeyPath, message: str) -> None:
        self._document.faults.append(Fault(path, node.start_mark.line + 1, message))


def _syntax_message(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    problem = f"{error.context}, {error.problem}" if error.context else str(error.problem)
    if "'\\t'" in problem:
        problem += " (indent with spaces, not with tabs)"
    elif "mapping values are not allowed" in problem:
        problem += " (a value that holds ': ' must be quoted; keys of one section begin in the same column)"
    elif "expected a single document" in problem:
        problem += " (a config is one document: remove the '---' between)"
    return f"{where}not YAML: {problem}"
