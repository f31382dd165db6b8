"""What is installed: the wheel's content, the pinned versions, and the files that ship beside the code."""

import ast
import configparser
import importlib.metadata
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[3]
PACKAGES = ("rlhf", "envs", "reward_models")
# Libraries that others need for what is used of them: TensorBoard's files, GGUF models.
NOT_IMPORTED = {"tensorboard", "gguf"}
# Parts of pydantic under names of their own.
NOT_DECLARED = {"pydantic-core", "typing-extensions"}
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


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(pin.name): pin for pin in found}


def declared(*extras: str) -> dict[str, Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = project["dependencies"] + [text for extra in extras for text in project["optional-dependencies"][extra]]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, texts)}


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
    assert imported - NOT_DECLARED <= set(declared())
    assert set(declared()) - NOT_IMPORTED <= imported


def test_each_constraint_is_one_exact_version():
    for pin in pins().values():
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), pin  # no local version, no range
        assert pin.url is None


def test_all_dependencies_are_pinned_and_the_pins_fit():
    for name, requirement in declared("test").items():
        [version] = [clause.version for clause in pins()[name].specifier]
        assert requirement.specifier.contains(version), f"{requirement} and {pins()[name]}"


def test_installed_versions_are_the_pinned_ones():
    # What the tests pass with is what `make` installs; +cpu and the like are builds of the same version.
    for name, pin in pins().items():
        if pin.marker is not None and not pin.marker.evaluate():
            continue
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # of the quickstart only
        assert pin.specifier.contains(version.partition("+")[0]), f"{name} {version} is installed, {pin} is pinned"


def test_ci_and_hooks_call_what_a_developer_calls():
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert all(line in ci.splitlines() for line in ("make lint", "make test"))
    assert ".venv/bin/rlhf run configs/tiny.yaml" in ci
    assert "run: bash .ci/run" in (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
