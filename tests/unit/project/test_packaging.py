"""What is installed: the wheel's content, the pinned versions, and the files that ship beside the code."""

import ast
import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[3]
PACKAGES = ("rlhf", "envs", "reward_models")
# Libraries that others need for what is used of them: TensorBoard's files, GGUF models.
NOT_IMPORTED = {"tensorboard", "gguf"}
# A part of pydantic under a name of its own.
NOT_DECLARED = {"pydantic-core"}
NEWEST, LOWEST = "constraints.txt", "constraints-lowest.txt"
EXTRAS = ("deepspeed", "gguf")
LOWEST_EXTRAS = ("deepspeed",)  # GGUF files need a newer transformers than the rest
PYTHON = "3.11"
NOT_SHIPPED = {"__pycache__", ".ruff_cache", ".mypy_cache", ".pytest_cache"}


def package_files() -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and not NOT_SHIPPED & set(path.parts)
    }


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy, so that nothing is left in the source tree."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns(*NOT_SHIPPED))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(target), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = target.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.mark.slow
def test_the_wheel_holds_the_packages_with_their_data_and_nothing_else(wheel: zipfile.ZipFile):
    files = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert files == package_files()
    assert {name for name in files if name.endswith(".jsonl")}
    assert {"rlhf/py.typed", "envs/py.typed", "reward_models/py.typed"} <= files


@pytest.mark.slow
def test_the_wheel_gives_the_command_and_the_licence(wheel: zipfile.ZipFile):
    [points] = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    parser = configparser.ConfigParser()
    parser.read_string(wheel.read(points).decode())
    assert dict(parser["console_scripts"]) == {"rlhf": "rlhf.cli.app:main"}
    [metadata] = [name for name in wheel.namelist() if name.endswith("METADATA")]
    assert "License-Expression: Apache-2.0" in wheel.read(metadata).decode()
    [licence] = [name for name in wheel.namelist() if name.endswith("licenses/LICENSE")]
    assert wheel.read(licence) == (ROOT / "LICENSE").read_bytes()


def pins(file: str) -> dict[str, Requirement]:
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in found}


def project() -> dict[str, Any]:
    content: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return content


def declared(*extras: str) -> dict[str, Requirement]:
    content = project()
    texts = content["dependencies"] + [text for extra in extras for text in content["optional-dependencies"][extra]]
    found = {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, texts)}
    found.pop(content["name"], None)  # extras that name other extras
    return found


def lower_bound(requirement: Requirement) -> Version:
    [version] = [clause.version for clause in requirement.specifier if clause.operator == ">="]
    return Version(version)


def imported_distributions() -> set[str]:
    """The distributions whose modules the packages import."""
    modules = set()
    for file in package_files():
        if not file.endswith(".py"):
            continue
        for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
    known = importlib.metadata.packages_distributions()
    foreign = modules - set(PACKAGES) - set(sys.stdlib_module_names)
    return {canonicalize_name(known[module][0]) for module in foreign}


def test_what_is_imported_is_declared_and_what_is_declared_is_used():
    imported = imported_distributions()
    assert imported - NOT_DECLARED <= set(declared(*EXTRAS))
    assert set(declared(*EXTRAS)) - NOT_IMPORTED <= imported


def test_errors_name_extras_that_exist():
    texts = [(ROOT / file).read_text(encoding="utf-8") for file in package_files() if file.endswith(".py")]
    named = {extra for text in texts for extra in re.findall(rf"{project()['name']}\[(\w+)\]", text)}
    assert named == set(EXTRAS)
    assert named <= set(project()["optional-dependencies"])


@pytest.mark.parametrize("file", [NEWEST, LOWEST])
def test_each_constraint_is_one_exact_version(file: str):
    for pin in pins(file).values():
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), pin  # no local version, no range
        assert pin.url is None
        assert pin.marker is None


@pytest.mark.parametrize(("file", "extras"), [(NEWEST, (*EXTRAS, "test", "lint")), (LOWEST, (*LOWEST_EXTRAS, "test"))])
def test_all_dependencies_are_pinned_and_the_pins_fit(file: str, extras: tuple[str, ...]):
    for name, requirement in declared(*extras).items():
        [version] = [clause.version for clause in pins(file)[name].specifier]
        assert requirement.specifier.contains(version), f"{requirement} and {pins(file)[name]}"


def test_the_lowest_versions_are_the_lower_bounds():
    for name, requirement in declared(*LOWEST_EXTRAS, "test").items():
        [version] = [clause.version for clause in pins(LOWEST)[name].specifier]
        assert Version(version) == lower_bound(requirement), f"{requirement} and {pins(LOWEST)[name]}"


def test_the_lowest_python_is_one_everywhere():
    assert project()["requires-python"] == f">={PYTHON}"
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert settings["ruff"]["target-version"] == f"py{PYTHON.replace('.', '')}"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"LOWEST_PYTHON ?= python{PYTHON}" in makefile
    assert f"sys.version_info < ({PYTHON.replace('.', ', ')})" in makefile
    assert f'python: ["{PYTHON}", ' in (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")


def test_installed_versions_are_the_pinned_ones():
    # What the tests pass with is what `make` installs; +cpu and the like are builds of the same version.
    for name, pin in pins(os.environ.get("CONSTRAINTS", NEWEST)).items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of the quickstart only
        assert pin.specifier.contains(version.partition("+")[0]), f"{name} {version} is installed, {pin} is pinned"


def test_ci_and_hooks_call_what_a_developer_calls():
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert all(line in ci.splitlines() for line in ("make lint", "make test"))
    assert ".venv/bin/rlhf run configs/tiny.yaml" in ci
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert "run: bash .ci/run" in workflow
    assert "run: make test-lowest" in workflow
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
