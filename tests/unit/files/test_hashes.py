"""Hashes of files: what they follow, when a file is read again, and a cache that may be broken or closed."""

import hashlib
import json
import os
from pathlib import Path

import pytest

import rlhf.files.hashes
from rlhf.files.hashes import cache_folder, file_hash, files_hash


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hashes.json"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read."""
    found: list[str] = []
    read = rlhf.files.hashes._read_and_hash
    monkeypatch.setattr(rlhf.files.hashes, "_read_and_hash", lambda file: found.append(file.name) or read(file))
    return found


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time has passed since the files were written."""
    later = rlhf.files.hashes.time.time() + 60
    monkeypatch.setattr(rlhf.files.hashes.time, "time", lambda: later)


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def test_it_is_sha_256_of_the_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 10_000  # more than one chunk
    assert file_hash(write(tmp_path / "a", content)) == hashlib.sha256(content).hexdigest()


def test_a_hash_of_several_files_follows_names_contents_and_order_but_not_folders(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", b"1"), write(tmp_path / "b", b"2")
    first = files_hash([a, b])
    moved = [write(tmp_path / "other" / name, content) for name, content in (("a", b"1"), ("b", b"2"))]
    assert files_hash(moved) == first
    swapped = [write(tmp_path / "swapped" / name, content) for name, content in (("a", b"2"), ("b", b"1"))]
    assert len({first, files_hash([b, a]), files_hash([a]), files_hash(swapped), files_hash([])}) == 5


@pytest.mark.usefixtures("settled")
def test_a_file_that_did_not_change_is_read_once(tmp_path: Path, reads: list[str]) -> None:
    a, b = write(tmp_path / "a", b"1"), write(tmp_path / "b", b"2")
    first = files_hash([a, b])
    assert files_hash([a, b]) == first
    assert file_hash(a) == hashlib.sha256(b"1").hexdigest()
    assert reads == ["a", "b"]
    write(b, b"3")
    assert files_hash([a, b]) != first
    assert reads == ["a", "b", "b"]


@pytest.mark.usefixtures("settled")
def test_a_file_of_the_same_size_and_modification_time_is_read_again(tmp_path: Path, reads: list[str]) -> None:
    """As `cp -p` or an archive puts it there: the time at which the file system saw the change tells."""
    file = write(tmp_path / "a", b"1")
    stat = file.stat()
    before = file_hash(file)
    os.replace(write(tmp_path / "b", b"2"), file)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)
    assert file_hash(file) != before
    assert reads == ["a", "a"]


def test_a_file_that_has_just_been_written_is_not_remembered(tmp_path: Path, cache: Path, reads: list[str]) -> None:
    """It may change again within one tick of the file system's clock, which nothing would show."""
    file = write(tmp_path / "a", b"1")
    file_hash(file)
    file_hash(file)
    assert reads == ["a", "a"]
    assert not cache.exists()


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("broken", ["{", "[]", '{"x": 3}', "\0"])
def test_a_broken_cache_costs_time_only(tmp_path: Path, cache: Path, broken: str, reads: list[str]) -> None:
    file = write(tmp_path / "a", b"1")
    cache.parent.mkdir()
    cache.write_text(broken.replace("x", str(file)), encoding="utf-8")
    expected = hashlib.sha256(b"1").hexdigest()
    assert (file_hash(file), file_hash(file)) == (expected, expected)
    assert reads == ["a"]
    assert json.loads(cache.read_text(encoding="utf-8"))


@pytest.mark.usefixtures("settled")
def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, monkeypatch, reads: list[str]) -> None:
    write(tmp_path / "no_folder", b"")
    monkeypatch.setenv("RLHF_CACHE", str(tmp_path / "no_folder"))
    file = write(tmp_path / "a", b"1")
    assert file_hash(file) == file_hash(file) == hashlib.sha256(b"1").hexdigest()
    assert reads == ["a", "a"]


@pytest.mark.usefixtures("settled")
def test_the_cache_does_not_grow_without_end(tmp_path: Path, cache: Path, monkeypatch) -> None:
    monkeypatch.setattr(rlhf.files.hashes, "_MOST_REMEMBERED", 2)
    for name in "abc":
        file_hash(write(tmp_path / name, b"1"))
    assert [Path(name).name for name in json.loads(cache.read_text(encoding="utf-8"))] == ["b", "c"]


def test_the_cache_folder_is_the_users_own_unless_it_is_named(tmp_path: Path, monkeypatch) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.setenv("RLHF_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert cache_folder() == tmp_path / "me" / ".cache" / "rlhf"
