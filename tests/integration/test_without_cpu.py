"""With the compiled backend's folder deleted everything still runs: the oracles, and a whole run on a tiny model."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# An editable installation finds what the copy lacks in the tree it was made from.
WITHOUT_THE_INSTALLED = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "__name__", "") != "_EditableFinder"]
"""
PARTS = ("rlhf", "envs", "reward_models", "tests", "configs", "pyproject.toml")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("rlhf.cpu") is None, reason="the folder is deleted already"),
]


@pytest.fixture
def copy(tmp_path):
    """The tree without rlhf/cpu."""
    skipped = shutil.ignore_patterns("__pycache__", "*.so", ".*")
    for name in PARTS:
        source, target = ROOT / name, tmp_path / "copy" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=skipped)
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copy(source, target)
    shutil.rmtree(tmp_path / "copy" / "rlhf" / "cpu")
    (tmp_path / "copy" / "sitecustomize.py").write_text(WITHOUT_THE_INSTALLED, "utf-8")
    return tmp_path / "copy"


def run(folder, *arguments):
    """Run Python's module in the copy; PYTHONPATH goes before the installed package."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def test_the_copy_has_no_compiled_backend(copy):
    program = "import rlhf.policies.backend as door; print(door.__file__); import rlhf.cpu"
    done = subprocess.run([sys.executable, "-c", program], cwd=copy, env={**os.environ, "PYTHONPATH": str(copy)},
                          capture_output=True, text=True)  # fmt: skip
    assert str(copy) in done.stdout
    assert "No module named 'rlhf.cpu'" in done.stderr


def test_the_oracles_pass(copy):
    rooms = [f"tests/unit/{room}" for room in ("episodes", "generation", "models", "packing", "policies", "ppo", "trl")]
    assert " passed" in run(copy, "pytest", *rooms, "-k", "oracle", "-x", "-q", "-p", "no:cacheprovider")


def test_the_tiny_run_ends(copy, tmp_path):
    run(copy, "rlhf", "run", "configs/tiny.yaml", f"runs_dir={tmp_path / 'runs'}")
    assert list((tmp_path / "runs").glob("*/manifest.json"))
