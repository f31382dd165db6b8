"""One fault: a few characters of the engine's source, and what a tired engineer might have written there instead.

A fault is text, not a patch: it says what stands in a function now, once, so it cannot be applied to a source that has
moved on without anybody noticing. It names the function and not the file, so that a function may move to another room.
"""

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ENGINE = "rlhf"
ROOMS = ("cpu", "episodes", "generation", "models", "packing", "policies", "ppo", "trl")  # whose faults are tried
TESTS = "tests/unit"
_CPP_FUNCTION = re.compile(  # or a constructor, which has no type before it
    r"^ *(?:(?:[\w:<>*&,\[\]]+ )+\**(?P<name>\w+)|(?P<constructor>[A-Z]\w*))\([^;{}]*\)[^;{}]*\{", re.MULTILINE
)


class FaultError(Exception):
    """A fault that cannot be applied, or does not make a program."""


@dataclass(frozen=True)
class Fault:
    """A change of the engine that changes its results."""

    name: str
    function: str  # module and function: "losses.policy_loss", "sampler.Sampler.next_tokens"; C++: "blocks.cpp.finish"
    old: str  # stands in the function exactly once
    new: str
    why: str  # what goes wrong
    first: tuple[str, ...] = ()  # tests that are run first: functions, or modules without their test_

    def path(self, root: Path) -> Path:
        """The file that holds the function.

        Raises:
            FaultError: There is no such function, or there are several.
        """
        found = [file for file in sources(root) if self.function in functions(file)]
        if len(found) != 1:
            raise FaultError(f"fault {self.name!r}: {len(found)} functions are called {self.function}, not one")
        return found[0]

    def mutated(self, path: Path) -> str:
        """Return the file's text with the fault in it.

        Raises:
            FaultError: `old` is not in the function exactly once, is the same as `new`, or the result does not compile.
        """
        source, body = path.read_text(encoding="utf-8"), functions(path)[self.function]
        count = body.count(self.old)
        if count != 1:
            raise FaultError(
                f"fault {self.name!r}: its text stands {count} times in {self.function}, where it must stand once. The "
                f"source has moved on: say what stands there now.\n{self.old}"
            )
        if self.old == self.new:
            raise FaultError(f"fault {self.name!r} changes nothing in {self.function}")
        text = source.replace(body, body.replace(self.old, self.new), 1)
        if path.suffix == ".py":
            try:
                compile(text, str(path), "exec")
            except SyntaxError as error:
                raise FaultError(f"fault {self.name!r} does not compile: {error}") from error
        return text

    def apply(self, root: Path) -> Callable[[], object]:
        """Put the fault into the tree at `root`; return what takes it out again."""
        path = self.path(root)
        source = path.read_text(encoding="utf-8")
        path.write_text(self.mutated(path), encoding="utf-8")
        return lambda: path.write_text(source, encoding="utf-8")


def sources(root: Path) -> list[Path]:
    """The engine's files."""
    folders = [root / ENGINE / room for room in ROOMS]
    return sorted(file for folder in folders for file in folder.glob("*") if file.suffix in (".py", ".cpp", ".h"))


def functions(path: Path) -> dict[str, str]:
    """Every function and class of a file by name, and its text; the module itself by its own name.

    A method of C++ has its bare name; of several functions with one name it is the first.
    """
    text = path.read_text(encoding="utf-8")
    module = path.stem if path.suffix == ".py" else path.name
    inner = _python(text) if path.suffix == ".py" else _cpp(text)
    found = {module: text}
    for name, body in inner:
        found.setdefault(f"{module}.{name}", body)
    return found


def _python(text: str) -> Iterator[tuple[str, str]]:
    lines = text.splitlines(keepends=True)

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                start = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
                yield f"{prefix}{child.name}", "".join(lines[start - 1 : child.end_lineno])
                yield from walk(child, f"{prefix}{child.name}.")

    yield from walk(ast.parse(text), "")


def _cpp(text: str) -> Iterator[tuple[str, str]]:
    """Definitions that begin a line, up to the brace that closes them."""
    for match in _CPP_FUNCTION.finditer(text):
        depth, end = 0, match.end() - 1
        for end in range(match.end() - 1, len(text)):
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            if depth == 0:
                break
        yield match["name"] or match["constructor"], text[match.start() : end + 1]


def node_ids(root: Path, tests: tuple[str, ...]) -> list[str]:
    """Return pytest's names of tests: "test_x" is the function, "kl" the file test_kl.py, wherever they lie.

    Raises:
        FaultError: There is no such test.
    """
    found = []
    for test in tests:
        files = [file for file in sorted((root / TESTS).rglob("test_*.py"))
                 if file.stem == f"test_{test}" or f"\ndef {test}(" in file.read_text(encoding="utf-8")]  # fmt: skip
        if not files:
            raise FaultError(f"there is no test {test!r}")
        whole = {file for file in files if file.stem == f"test_{test}"}
        found += [f"{file.relative_to(root)}" + ("" if file in whole else f"::{test}") for file in files]
    return found
