"""Files and folders that appear whole or not at all. Everything that a run leaves behind is written through here.

What is written lies under another name in the same folder until it is complete and on disk; then it is renamed, which
a file system does in one step. A process that is killed leaves at most a hidden file or folder.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["write_text", "written_file", "written_folder"]


def write_text(path: Path, text: str) -> None:
    """Write `path` in UTF-8; its folder is made if there is none."""
    with written_file(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextmanager
def written_file(path: Path) -> Iterator[Path]:
    """Give another path to write to; what lies there takes the place of `path` when the block ends without an error."""
    unfinished = _beside(path)
    try:
        yield unfinished
        _to_disk(unfinished)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def written_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder to write into; it takes the place of `path` when the block ends without an error."""
    unfinished = _beside(path)
    shutil.rmtree(unfinished, ignore_errors=True)  # of a killed process that had the same number
    unfinished.mkdir()
    try:
        yield unfinished
        for file in unfinished.rglob("*"):
            if file.is_file():
                _to_disk(file)
        if path.exists():
            shutil.rmtree(path)
        unfinished.replace(path)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _beside(path: Path) -> Path:
    """A name in the same folder, hence on the same file system, that no other process takes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _to_disk(file: Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())  # else a crash of the machine could leave an empty file under the final name
