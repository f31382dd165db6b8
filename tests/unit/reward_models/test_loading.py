"""Loading what `module:function` or `file.py:function` names, and finding its files without importing anything."""

import sys
from pathlib import Path

import pytest

from reward_models.errors import RewardError
from reward_models.loading import load_callable, source_files


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package, a module and a file, each of which says so when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    inner = tmp_path / "loading_package" / "inner"
    inner.mkdir(parents=True)
    for file in (inner.parent / "__init__.py", inner / "__init__.py", inner / "deep.py", tmp_path / "loading_file.py"):
        file.write_text(f"IMPORTED = {file.stem!r}\n\n\ndef function():\n    return {file.stem!r}\n\n\nnumber = 3\n")
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("loading_")]:
        del sys.modules[name]


def load(target: str):
    return load_callable(target, f"Thing {target!r}", RewardError)


@pytest.mark.parametrize(
    ("target", "answer"),
    [
        ("loading_file.py:function", "loading_file"),
        ("loading_file:function", "loading_file"),
        ("loading_package.inner.deep:function", "deep"),
        ("loading_package.inner:function", "__init__"),
    ],
)
def test_a_function_of_a_file_or_module(target: str, answer: str) -> None:
    assert load(target)() == answer


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "loading_file.py:funtcion",
            r"^Thing '.*': loading_file\.py has no function 'funtcion'; did you mean function\?$",
        ),
        ("loading_file.py:zzz", r"has no function 'zzz'; it has function\.$"),
        ("loading_file.py:number", r"^Thing '.*': number is 3, which cannot be called; name a function\.$"),
        (
            "loading_fiel.py:function",
            r"no file loading_fiel\.py \(did you mean loading_file\.py.*\?\)\. Relative paths",
        ),
        (
            "nothing_here:function",
            r"importing nothing_here fails: ModuleNotFoundError: .* allowed are 'module:function'",
        ),
        ("loading_package.nothing:f", r"importing loading_package\.nothing fails: ModuleNotFoundError"),
        (":function", r"name a function as 'module:function' or 'path/to/file\.py:function'\.$"),
        ("loading_file.py:", r"name a function as"),
    ],
)
def test_a_mistake_is_named(target: str, message: str) -> None:
    with pytest.raises(RewardError, match=message):
        load(target)


def test_a_file_that_fails_leaves_no_half_module_behind(folder: Path) -> None:
    (folder / "broken.py").write_text("x = 1\nraise SystemError('stop')\n")
    before = set(sys.modules)
    with pytest.raises(RewardError, match=r"importing broken\.py fails: SystemError: stop\."):
        load("broken.py:x")
    assert set(sys.modules) == before


def test_a_file_that_changed_is_loaded_anew(folder: Path) -> None:
    assert load("loading_file.py:function")() == "loading_file"
    (folder / "loading_file.py").write_text("def function():\n    return 'changed, and longer'\n")
    assert load("loading_file.py:function")() == "changed, and longer"


@pytest.mark.parametrize(
    ("target", "files"),
    [
        ("loading_file.py:function", ["loading_file.py"]),
        ("loading_file:anything", ["loading_file.py"]),
        ("loading_package.inner.deep:function", ["loading_package/inner/deep.py"]),
        ("loading_package.inner:x", ["loading_package/inner/__init__.py", "loading_package/inner/deep.py"]),
        ("no_such_file.py:f", []),
        ("no_such_module:f", []),
        ("loading_package.no_such:f", []),
        ("loading_file.no_package:f", []),
        ("sys:exit", []),
    ],
)
def test_files_are_found_without_importing(folder: Path, target: str, files: list[str]) -> None:
    found = [file.resolve().relative_to(folder.resolve()).as_posix() for file in source_files(target)]
    assert found == files
    assert not [name for name in sys.modules if name.startswith("loading_")]
