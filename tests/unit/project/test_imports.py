"""The shape of the source: imports point one way, each heavy library is in one place, files and functions are short."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PACKAGES = ("rlhf", "envs", "reward_models")
ALLOWED = {
    "rlhf": {"rlhf", "envs", "reward_models"},
    "envs": {"envs", "reward_models"},
    "reward_models": {"reward_models"},
}
ONLY_IN = {
    "trl": "rlhf/trl_bridge.py",
    "deepspeed": "rlhf/distributed.py",
    "wandb": "rlhf/tracking/wandb.py",
}
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imported(tree: ast.AST, path: Path) -> Iterator[str]:
    """Full names of the modules that a file imports, also inside functions and by `import_module("...")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            yield ".".join([*package, *([node.module] if node.module else [])])
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value


def imports_of(path: Path) -> set[str]:
    return set(imported(ast.parse(path.read_text(encoding="utf-8")), path))


def test_the_reader_of_imports_sees_every_form():
    text = (
        "import trl.rewards as r\nfrom envs import base\nfrom . import sibling\nfrom ..up import x\n"
        "def late():\n    import wandb\n    importlib.import_module('deepspeed.ops')\n"
    )
    found = set(imported(ast.parse(text), ROOT / "rlhf" / "tracking" / "file.py"))
    assert found == {"trl.rewards", "envs", "rlhf.tracking", "rlhf.up", "wandb", "deepspeed.ops"}


def test_all_packages_are_read():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str):
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in FILES
        if path.relative_to(ROOT).parts[0] == package
        for name in imports_of(path)
        if name.split(".")[0] in set(PACKAGES) - ALLOWED[package]
    }
    assert not wrong


@pytest.mark.parametrize("library", ONLY_IN)
def test_a_heavy_library_is_imported_in_one_place(library: str):
    users = {
        path.relative_to(ROOT).as_posix()
        for path in FILES
        if any(name.split(".")[0] == library for name in imports_of(path))
    }
    assert users == {ONLY_IN[library]}


def test_files_are_short_and_say_what_they_are():
    wrong = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) > 300 or not ast.get_docstring(ast.parse(text)):
            wrong.append(str(path.relative_to(ROOT)))
    assert not wrong
    assert not [path for path in FILES if path.stem in ("utils", "helpers", "misc", "common")]


def lines_of_code(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring, which may be as long as it has to be."""
    first = function.body[0]
    documented = ast.get_docstring(function) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def test_functions_are_short():
    long = {
        f"{path.relative_to(ROOT)}:{node.name}": lines
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (lines := lines_of_code(node)) >= 50
    }
    assert not long
