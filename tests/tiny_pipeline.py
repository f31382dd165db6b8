"""Runs `rlhf` as a user would, on the tiny configuration; for tests of whole runs."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TINY = ROOT / "configs" / "tiny.yaml"


def rlhf(*arguments: str, cwd: Path = ROOT) -> str:
    """Run the command and return what it prints; it must succeed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_SILENT": "true"}
    line = [sys.executable, "-m", "rlhf", *arguments]
    done = subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def forget(run: Path, *stages: str) -> None:
    """Take stages out of a run's manifest, so that they run again."""
    path = run / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    for stage in stages:
        del manifest["stages"][stage]
    path.write_text(json.dumps(manifest), "utf-8")


def copy_run(run: Path, name: str, *forgotten: str) -> Path:
    """Copy a run folder, without the record of some stages and their metrics."""
    target = run.parent / name
    shutil.copytree(run, target)
    forget(target, *forgotten)
    return target


def readme_blocks(language: str) -> list[str]:
    """Return the fenced blocks of one language in the README."""
    text = (ROOT / "README.md").read_text("utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
