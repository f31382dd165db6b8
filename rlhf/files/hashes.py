"""Hashes of file contents, read once: they are remembered by path, size and times in the cache folder.

`rlhf.run.fingerprint` compares them to find out what has changed, and converted models are named by them.
"""

import json
import os
import time
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from rlhf.files.atomic import write_text

__all__ = ["cache_folder", "file_hash", "files_hash"]

_CHUNK_BYTES = 1 << 20
_MOST_REMEMBERED = 10_000  # the oldest entries go first
# A file may change twice within one tick of its file system's clock. A hash is remembered only when that is over, as
# git does it with its index.
_TICK_SECONDS = 2.0


def cache_folder() -> Path:
    """Where things are kept that can be made again: $RLHF_CACHE, else ~/.cache/rlhf."""
    return Path(os.environ.get("RLHF_CACHE") or "~/.cache/rlhf").expanduser()


def file_hash(file: Path) -> str:
    """SHA-256 of a file's bytes."""
    return _digests([file])[0]


def files_hash(files: Iterable[Path]) -> str:
    """One hash of several files in their order: of their names and bytes, not of the folders they lie in."""
    files = list(files)
    lines = [f"{file.name} {digest}" for file, digest in zip(files, _digests(files), strict=True)]
    return sha256("\n".join(lines).encode()).hexdigest()


def _digests(files: list[Path]) -> list[str]:
    remembered = _read_cache()
    found, new = [], {}
    for file in files:
        key = str(file.resolve())
        stat = file.stat()
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        entry = remembered.get(key)
        if isinstance(entry, list) and entry[:-1] == state:
            found.append(str(entry[-1]))
            continue
        digest = _read_and_hash(file)
        found.append(digest)
        if time.time() - max(stat.st_mtime, stat.st_ctime) > _TICK_SECONDS:
            new[key] = [*state, digest]
    if new:
        _write_cache({**{key: entry for key, entry in remembered.items() if key not in new}, **new})
    return found


def _read_and_hash(file: Path) -> str:
    digest = sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _cache_file() -> Path:
    return cache_folder() / "hashes.json"


def _read_cache() -> dict[str, object]:
    try:
        content = json.loads(_cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):  # there is none, or it is broken: everything is read anew
        return {}
    return content if isinstance(content, dict) else {}


def _write_cache(entries: dict[str, object]) -> None:
    kept = dict(list(entries.items())[-_MOST_REMEMBERED:])
    try:
        write_text(_cache_file(), json.dumps(kept))
    except OSError:
        pass  # a cache that cannot be written costs time and nothing else
