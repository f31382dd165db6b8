"""A copy of the source in which faults are tried, and a run of the tests there.

A run is a process of its own, forked from one that has the heavy libraries in memory but nothing of ours, so that it
starts at once. The copy is what it imports, also where the packages are installed: each run begins with a test that
says so. Nothing here changes the tree that is copied.
"""

import multiprocessing
import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .fault import ROOMS, TESTS, Fault

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext

COPIED = ("rlhf", "envs", "reward_models", "tests", "pyproject.toml")
PACKAGES = ("rlhf", "envs", "reward_models")
_HEAVY = ["pytest", "torch", "datasets", "gymnasium", "peft", "transformers.trainer"]
_HEAVY += [f"transformers.models.{name}.modeling_{name}" for name in ("llama", "gpt2", "opt", "mistral")]
_SUMMARY = re.compile(r"^(?:FAILED|ERROR) (?P<test>\S+?\.py(?:::.*?)?)(?: - (?P<message>.*))?$", re.MULTILINE)
# What a program raises that nobody would have run even once.
_NO_PROGRAM = re.compile(r"(NameError|UnboundLocalError|ImportError|ModuleNotFoundError|SyntaxError|AttributeError)\b")
_PROBE = "tests/unit/test_the_copy.py"
_PROBE_TEXT = """\
from pathlib import Path

import pytest


@pytest.mark.parametrize("package", {packages!r})
def test_the_copy_is_what_is_imported(package):
    assert Path(__import__(package).__path__[0]).is_relative_to({root!r})
"""


def heavy_process() -> "ForkServerContext":
    """Return what starts processes with the heavy libraries in memory."""
    # Read when torch is imported: several runs share the processor.
    os.environ |= {"OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_HEAVY)
    return context


@dataclass(frozen=True)
class Outcome:
    """What became of a fault, or of no fault."""

    kind: str  # killed, hangs, survived or broken
    detail: str = ""  # the first test that failed, or what is broken


class Tree:
    """A copy of the source at `root`, in which one run at a time takes place."""

    def __init__(self, source: Path, root: Path, context: "ForkServerContext") -> None:
        self.root, self.context = root, context
        root.mkdir(parents=True)
        for name in COPIED:
            if (source / name).is_dir():
                shutil.copytree(source / name, root / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
            else:
                shutil.copy2(source / name, root / name)
        (root / _PROBE).write_text(_PROBE_TEXT.format(packages=PACKAGES, root=str(root)), encoding="utf-8")

    def fast_tests(self) -> list[str]:
        """The folders of the engine's tests."""
        return [f"{TESTS}/{room}" for room in ROOMS if (self.root / TESTS / room).is_dir()]

    def run(self, tests: Sequence[str], seconds: float) -> Outcome:
        """Run tests up to the first that fails."""
        output = self.root.with_suffix(".txt")
        process = self.context.Process(target=_run_pytest, args=(str(self.root), [_PROBE, *tests], str(output)))
        process.start()
        process.join(seconds)
        if process.exitcode is None:
            process.kill()
            process.join()
            return Outcome("hangs", f"no answer within {seconds:.0f} s")
        return _outcome(process.exitcode, output.read_text(encoding="utf-8", errors="replace"))

    def try_fault(self, fault: Fault, tests: Sequence[str], seconds: float) -> Outcome:
        """Run tests with the fault in the source."""
        restore = fault.apply(self.root)
        try:
            return self.run(tests, seconds)
        finally:
            restore()


def _run_pytest(root: str, tests: list[str], output: str) -> None:
    """Be a fresh `python -m pytest` at `root`."""
    import pytest

    with open(output, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(root)
    sys.path.insert(0, root)
    # A fault may be written within the second of the file it replaces: cached bytecode would hide it.
    sys.dont_write_bytecode = True
    # pytest cuts its summary to the width of the terminal; faulty C++ stays with the copy when it is compiled.
    os.environ |= {"PYTHONPATH": root, "COLUMNS": "500", "XDG_CACHE_HOME": f"{root}/.cache"}
    # pytest would complain that it cannot rewrite the assertions of a library that is in memory already.
    options = [
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "not slow",
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
    ]
    sys.exit(int(pytest.main([*options, *tests])))


def _outcome(code: int, output: str) -> Outcome:
    """Read what pytest says: 0 all passed, 1 a test failed, anything else is no result."""
    if code == 0:
        return Outcome("survived")
    found = _SUMMARY.search(output)
    if found is None:
        return Outcome("broken", f"pytest ended with {code}: {output.strip()[-2000:]}")
    test, message = found["test"], found["message"] or ""
    if code != 1:
        return Outcome("broken", f"pytest ended with {code}, maybe an import that fails: {test} {message}".strip())
    if test.startswith(_PROBE):
        return Outcome("broken", f"the copy is not what is imported: {message}")
    if broken := _NO_PROGRAM.match(message):
        return Outcome("broken", f"does not run: {broken[1]} in {test}: {message}")
    return Outcome("killed", test.removeprefix("tests/unit/"))
