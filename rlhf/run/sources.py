"""Hashes of the code and the models behind a configuration. Nothing is imported or loaded for them.

Used by `fingerprint.py`; data are hashed by `rlhf.data.content_hash`. Of a module only its own file counts, of a
package all its files: what they import in their turn does not.
"""

from pathlib import Path

from reward_models.loading import source_files
from rlhf.files.hashes import files_hash
from rlhf.models.source import PACKAGE, packaged_gguf

_BUILT_IN_REWARDS = "reward_models.rules"


def code_hash(target: str) -> str | None:
    """Hash of the source behind `module:name`, `path/to/file.py:function` or a built-in reward's name.

    Returns:
        None if there is no such source; whoever calls the function says so.
    """
    files = source_files(target if ":" in target else f"{_BUILT_IN_REWARDS}:{target}")
    return files_hash(files) if files else None


def model_hash(path: str) -> str | None:
    """Hash of the files of a local model: a folder, a .gguf file or `package:NAME`.

    Returns:
        None for what is not on this machine: a Hub id is known by its name and revision only.

    Raises:
        ModelError: A package is not installed or holds no such file.
    """
    if path.startswith(PACKAGE):
        return files_hash([packaged_gguf(path.removeprefix(PACKAGE))])
    local = Path(path).expanduser()
    if local.is_file():
        return files_hash([local])
    return files_hash(sorted(file for file in local.rglob("*") if file.is_file())) if local.is_dir() else None
