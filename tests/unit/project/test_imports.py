"""The shape of the source: imports point one way, each heavy library is in one place, files and functions are short."""

import ast
import re
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
    "trl": "rlhf/stages/trl.py",
    "deepspeed": "rlhf/launch/deepspeed.py",
    "wandb": "rlhf/tracking/wandb.py",
}
# Rooms of rlhf/, from the top floor down: a room uses only rooms below it.
ROOMS = (
    "cli", "study", "probe", "run", "stages", "evaluation", "trl", "ppo", "episodes", "scoring", "generation",
    "policies", "cpu", "packing", "models", "planning", "data", "report", "results", "tracking", "launch", "config",
    "files", "errors",
)  # fmt: skip
# `from rlhf.ppo import PPOTrainer` is what scripts for TRL's trainer say; the package looks it up when it is asked for.
LOOKED_UP = ("rlhf.ppo", "rlhf.trl")
# Where the user's own functions and environments are loaded by name.
LOADERS = {"envs/registry.py", "reward_models/loading.py"}
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imported(tree: ast.AST, path: Path) -> Iterator[str]:
    """Full names of what a file imports: under TYPE_CHECKING, inside functions and by `import_module` as well."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parts[: -node.level] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
            if not all(is_module(name) for name in names):  # else the package only says where they are
                yield module
            yield from names
        elif isinstance(node, ast.Call) and node.args:
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__"):
                yield looked_up(node.args[0])


def is_module(name: str) -> bool:
    file = ROOT / name.replace(".", "/")
    return file.is_dir() or file.with_suffix(".py").is_file()


def looked_up(argument: ast.expr) -> str:
    """What `import_module` is given, as far as the text says: the beginning of an f-string, "?" for anything else."""
    if isinstance(argument, ast.JoinedStr) and argument.values:
        argument = argument.values[0]  # type: ignore[assignment]
    return argument.value if isinstance(argument, ast.Constant) and isinstance(argument.value, str) else "?"


def imports_of(path: Path) -> set[str]:
    return set(imported(ast.parse(path.read_text(encoding="utf-8")), path))


def test_the_reader_of_imports_sees_every_form():
    text = (
        "import trl.rewards as r\nfrom envs import base\nfrom . import sibling\nfrom ..up import x\n"
        "def late():\n    import wandb\n    importlib.import_module('deepspeed.ops')\n"
    )
    text += "if TYPE_CHECKING:\n    from rlhf.up import y\nimport_module(f'rlhf.stages.{name}')\nimport_module(name)\n"
    found = set(imported(ast.parse(text), ROOT / "rlhf" / "tracking" / "file.py"))
    assert {"trl.rewards", "rlhf.tracking", "rlhf.up", "wandb", "deepspeed.ops", "rlhf.stages."} <= found
    assert {"rlhf.up.y", "envs.base", "?"} <= found


def room_of(name: str) -> str | None:
    """The room of a module of rlhf/: of `rlhf.ppo.kl` it is ppo."""
    parts = name.split(".")
    return parts[1] if parts[0] == "rlhf" and len(parts) > 1 else None


def modules() -> dict[str, Path]:
    """Every module of rlhf/ by its full name."""
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in FILES}
    return {name.removesuffix(".__init__"): path for path, name in names.items() if name.startswith("rlhf.")}


def test_every_room_has_its_floor_and_nothing_lies_loose():
    found = {path.relative_to(ROOT / "rlhf").parts for path in FILES if path.is_relative_to(ROOT / "rlhf")}
    assert {parts[0] for parts in found if len(parts) > 1} == set(ROOMS) - {"errors"}
    assert {parts[0] for parts in found if len(parts) == 1} == {"__init__.py", "__main__.py", "errors.py"}


def test_a_room_uses_only_rooms_below_it():
    upwards = set()
    for name, path in modules().items():
        own = room_of(name)
        if own not in ROOMS:
            continue
        for target in imports_of(path):
            room = room_of(target)
            if room in ROOMS and ROOMS.index(room) < ROOMS.index(own) and (name, target) != LOOKED_UP:
                upwards.add(f"{name} imports {target}")
    assert not upwards


def test_no_module_is_looked_up_where_no_editor_follows():
    """A name that is put together at run time hides an arrow; users' own modules are loaded in one place."""
    hidden = {
        path.relative_to(ROOT).as_posix()
        for path in FILES
        if any(name == "?" or (name.startswith("rlhf.stages.") and name.endswith(".")) for name in imports_of(path))
    }
    assert hidden == LOADERS


def test_no_modules_import_each_other_in_a_circle():
    known = modules()
    arrows = [(name, target) for name, path in known.items() for target in imports_of(path) & known.keys() - {name}]
    below = {name: {target for own, target in arrows if own == name} for name in known}
    below[LOOKED_UP[0]].remove(LOOKED_UP[1])
    left = dict(below)
    while True:  # take away what imports nothing that is left
        free = {name for name, targets in left.items() if not targets & left.keys()}
        if not free:
            break
        left = {name: targets for name, targets in left.items() if name not in free}
    assert not left


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "errors"])
def test_a_room_says_what_it_is_and_what_it_is_not(room: str):
    says = ast.get_docstring(ast.parse((ROOT / "rlhf" / room / "__init__.py").read_text(encoding="utf-8"))) or ""
    assert len(says.split()) >= 15
    assert re.search(r"\b(not|no|nothing|never|nobody|neither)\b", says, re.IGNORECASE)


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


ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_walk_from_a_key_to_the_log_line_is_still_the_one_that_the_code_takes():
    walk = re.findall(r"^\| `(rlhf/[\w/]+\.py)` \| `(.+)` \|$", ARCHITECTURE, re.MULTILINE)
    assert len({file for file, _ in walk}) <= 9
    assert not [(file, line) for file, line in walk if line not in (ROOT / file).read_text(encoding="utf-8")]
    assert all("coefficient" in line for file, line in walk if "/ppo/kl" in file or "token_rewards" in line)


def test_the_architecture_lists_the_rooms_from_the_top_floor_down():
    assert tuple(re.findall(r"^\| `(\w+)/` \|", ARCHITECTURE, re.MULTILINE)) == ROOMS[:-1]


def test_every_arrow_of_the_picture_points_down():
    picture = ARCHITECTURE.partition("```mermaid")[2].partition("```")[0]
    arrows = [(start, end) for start, ends in re.findall(r"^ +(\w+) --> (.+)$", picture, re.MULTILINE)
              for end in ends.split(" & ")]  # fmt: skip
    assert {room for arrow in arrows for room in arrow} == set(ROOMS[:-1])
    assert all(ROOMS.index(start) < ROOMS.index(end) for start, end in arrows)
