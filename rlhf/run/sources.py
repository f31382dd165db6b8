"""Hashes of the files behind a configuration: Python modules, model folders. Nothing is imported to find them.

Used by `fingerprint.py`; data files are hashed by `rlhf.data.content_hash`. Of a module only its own file counts, of a
package all its files: what they import in their turn does not.
"""

import sys
from collections.abc import Iterable
from hashlib import sha256
from importlib.machinery import PathFinder
from pathlib import Path

from rlhf.models.source import PACKAGE, packaged_gguf

_BUILT_IN_REWARDS = "reward_models.rules"


def code_hash(target: str) -> str | None:
    """Hash of the source behind `module:function`, `path/to/file.py:function` or a built-in reward's name.

    Returns:
        None if there is no such source; whoever calls the function says so.
    """
    place = target.rpartition(":")[0] or _BUILT_IN_REWARDS
    if place.endswith(".py"):
        file = Path(place).expanduser()
        return _hash([file]) if file.is_file() else None
    source = _find_module(place)
    if source is None:
        return None
    return _hash(sorted(source.rglob("*.py")) if source.is_dir() else [source])


def model_hash(path: str) -> str | None:
    """Hash of the files of a local model: a folder, a .gguf file or `package:NAME`.

    Returns:
        None for what is not on this machine: a Hub id is known by its name and revision only.

    Raises:
        ModelError: A package is not installed or holds no such file.
    """
    if path.startswith(PACKAGE):
        return _hash([packaged_gguf(path.removeprefix(PACKAGE))])
    local = Path(path).expanduser()
    if local.is_file():
        return _hash([local])
    return _hash(sorted(file for file in local.rglob("*") if file.is_file())) if local.is_dir() else None


def _find_module(name: str) -> Path | None:
    """The file of a module or the folder of a package, found as an import would, without importing parents."""
    search: list[str] | None = [*sys.path, str(Path.cwd())]
    parts = name.split(".")
    for position in range(len(parts)):
        spec = PathFinder.find_spec(".".join(parts[: position + 1]), search)
        if spec is None:
            return None
        search = None if spec.submodule_search_locations is None else list(spec.submodule_search_locations)
        if position == len(parts) - 1:
            return Path(search[0]) if search else Path(spec.origin) if spec.origin else None
        if search is None:
            return None
    return None


def _hash(files: Iterable[Path]) -> str:
    digest = sha256()
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size} ".encode())
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
