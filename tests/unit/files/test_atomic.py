"""Whole or not at all: what a reader finds while something is written, after an error, and after a kill."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.files.atomic import write_text, written_file, written_folder


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_text_is_written_in_utf_8_into_a_folder_that_is_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "notes.txt"
    write_text(path, "Grüße 😀\n")
    assert path.read_bytes() == "Grüße 😀\n".encode()
    assert names(path.parent) == ["notes.txt"]


def test_until_the_end_a_reader_finds_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "data.bin"
    path.write_bytes(b"old")
    with written_file(path) as unfinished:
        unfinished.write_bytes(b"new")
        assert path.read_bytes() == b"old"
        assert unfinished.parent == path.parent  # another file system could not rename it in one step
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["data.bin"]


@pytest.mark.parametrize("before", [b"old", None])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, before: bytes | None) -> None:
    path = tmp_path / "data.bin"
    if before is not None:
        path.write_bytes(before)

    def interrupted() -> None:
        with written_file(path) as unfinished:
            unfinished.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == ([] if before is None else ["data.bin"])
    assert before is None or path.read_bytes() == before


def test_a_file_that_cannot_be_put_on_disk_does_not_replace_the_old_one(tmp_path: Path, monkeypatch) -> None:
    def fail(_: int) -> None:
        raise OSError("no space left")

    path = tmp_path / "notes.txt"
    write_text(path, "old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="no space left"):
        write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["notes.txt"]


def test_a_new_file_has_the_permissions_that_open_gives(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_text(tmp_path / "whole", "")
    assert (tmp_path / "whole").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_appears_whole_and_replaces_an_earlier_one(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old.txt").write_text("old")
    with written_folder(target) as unfinished:
        (unfinished / "inner").mkdir()
        (unfinished / "inner" / "new.txt").write_text("new")
        assert names(target) == ["old.txt"]
    assert names(tmp_path) == ["model"]
    assert [file.relative_to(target).as_posix() for file in target.rglob("*.txt")] == ["inner/new.txt"]


def test_an_error_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()

    def failing() -> None:
        with written_folder(target) as unfinished:
            (unfinished / "half.txt").write_text("half")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        failing()
    assert names(tmp_path) == ["model"]
    assert names(target) == []


def test_a_killed_process_leaves_the_old_file_and_does_not_stop_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    write_text(path, "old")
    program = (
        "import os, signal, sys; from pathlib import Path\nfrom rlhf.files.atomic import written_file\n"
        "with written_file(Path(sys.argv[1])) as unfinished:\n"
        "    unfinished.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert path.read_text(encoding="utf-8") == "old"
    write_text(path, "new")
    assert path.read_text(encoding="utf-8") == "new"
    assert all(name.startswith(".") for name in names(tmp_path) if name != "data.txt")
