"""One fault: a few characters of the engine's source, and what a tired engineer might have written there instead.

A fault is text, not a patch: it says what stands in the file now, once, so it cannot be applied to a source that has
moved on without anybody noticing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ENGINE = "rlhf"
FAST_TESTS = "tests/unit/test_rlhf_ppo_*.py"


class FaultError(Exception):
    """A fault that cannot be applied, or does not make a program."""


@dataclass(frozen=True)
class Fault:
    """A change of the engine that changes its results."""

    name: str
    file: str  # in rlhf/ppo, or with its folder: models/kernels.py
    old: str  # stands in the file exactly once
    new: str
    why: str  # what goes wrong
    first: tuple[str, ...] = ()  # tests that are run first: what follows test_rlhf_ppo_, with or without ::test_name

    @property
    def path(self) -> str:
        """The file, from the root of the tree."""
        return f"{ENGINE}/{self.file if '/' in self.file else 'ppo/' + self.file}"

    @property
    def first_tests(self) -> list[str]:
        """What pytest is given first."""
        return [node_id(test) for test in self.first]

    def mutated(self, source: str) -> str:
        """Return the file's text with the fault in it.

        Raises:
            FaultError: `old` is not there exactly once, is the same as `new`, or the result does not compile.
        """
        count = source.count(self.old)
        if count != 1:
            raise FaultError(
                f"fault {self.name!r}: its text stands {count} times in {self.path}, where it must stand once. The "
                f"source has moved on: say what stands there now.\n{self.old}"
            )
        if self.old == self.new:
            raise FaultError(f"fault {self.name!r} changes nothing in {self.path}")
        text = source.replace(self.old, self.new)
        if self.path.endswith(".py"):
            try:
                compile(text, self.path, "exec")
            except SyntaxError as error:
                raise FaultError(f"fault {self.name!r} does not compile: {error}") from error
        return text

    def apply(self, root: Path) -> Callable[[], object]:
        """Put the fault into the tree at `root`; return what takes it out again."""
        path = root / self.path
        source = path.read_text(encoding="utf-8")
        path.write_text(self.mutated(source), encoding="utf-8")
        return lambda: path.write_text(source, encoding="utf-8")


def node_id(short: str) -> str:
    """Return pytest's name of a test of the engine: "kl::test_x" is tests/unit/test_rlhf_ppo_kl.py::test_x."""
    module, _, function = short.partition("::")
    path = FAST_TESTS.replace("*", module)
    return f"{path}::{function}" if function else path
