"""What the `path` of a source means: files (one, a glob, a folder), a saved data set, a function, or a Hub id.

First question of `load.py` and of the content hash. Nothing is read here but the names of files.
"""

import glob
import importlib.resources
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from reward_models.suggest import closest, did_you_mean
from rlhf.config.data import SourceConfig
from rlhf.data.files import READABLE, is_readable, missing_file
from rlhf.errors import DataError

PACKAGED = "packaged:"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
# Other people's formats, named so that data.xlsx is refused as a file and not looked up as a Hub id.
_OTHER_SUFFIXES = {".txt", ".arrow", ".xls", ".xlsx", ".gz", ".zip", ".zst", ".bz2", ".xz", ".yaml", ".yml", ".py"}
_ONE_SAVED, _SAVED_SPLITS = "dataset_info.json", "dataset_dict.json"  # what datasets' save_to_disk writes


@dataclass(frozen=True)
class Origin:
    """What a source's `path` turned out to mean.

    Attributes:
        form: How it is read.
        files: Its files; those of a saved data set are all that lie in its folder. Empty for functions and Hub ids.
        folder: The folder of a saved data set.
    """

    form: Literal["files", "saved", "function", "hub"]
    files: tuple[Path, ...] = ()
    folder: Path | None = None


def locate(source: SourceConfig) -> Origin:
    """Find out what a path means: packaged, file by suffix, glob, folder, function by colon, Hub id, in this order.

    Raises:
        DataError: If it is none of these, or there is no such file.
    """
    path = source.path
    if path.startswith(PACKAGED):
        return Origin("files", (_packaged_file(path.removeprefix(PACKAGED)),))
    file = Path(path).expanduser()
    if file.is_dir():
        return _folder(file, source)
    is_glob = glob.has_magic(path) and not file.exists()
    if "://" not in path and (is_glob or is_readable(file)):
        if source.split != "train":
            raise DataError(f"{path}: split {source.split!r} has an effect on folders and Hub ids alone: remove it.")
        if not is_glob and not file.is_file():
            raise missing_file(file, path)
        return Origin("files", _matching(str(file), path) if is_glob else (file,))
    if ":" in path and "://" not in path:
        return Origin("function")
    if file.exists() or file.suffix.lower() in _OTHER_SUFFIXES or not _HUB_ID.fullmatch(path):
        raise DataError(
            f"{path}: no file that can be read. Allowed are {READABLE}, folders of these, globs (data/*.jsonl), "
            f"folders of datasets' save_to_disk, {PACKAGED}NAME, module:function, path/to/file.py:function and Hub ids "
            "(owner/name)."
        )
    if file.parent.is_dir() and any(is_readable(entry) for entry in file.parent.glob(f"{glob.escape(file.name)}.*")):
        raise missing_file(file, path)  # the suffix was forgotten
    return Origin("hub")


def _packaged_file(name: str) -> Path:
    root = Path(str(importlib.resources.files("envs"))) / "data"
    known = sorted(file.relative_to(root).with_suffix("").as_posix() for file in root.rglob("*.jsonl"))
    if name not in known:
        near = closest(name, known, most=3) or known
        raise DataError(f"{PACKAGED}{name}: no such packaged data set; there are: {', '.join(near) or 'none'}.")
    return root / f"{name}.jsonl"


def _matching(pattern: str, name: str) -> tuple[Path, ...]:
    found = [Path(match) for match in sorted(glob.glob(pattern, recursive=True))]
    files = tuple(file for file in found if file.is_file() and is_readable(file))
    if not files:
        matches = f"the files that match it are none of {READABLE}" if found else "no file matches it"
        raise DataError(f"{name}: {matches}. Relative paths start at {Path.cwd()}.")
    return files


def _folder(folder: Path, source: SourceConfig) -> Origin:
    """A folder of files, split by their names as datasets does it, or one that datasets' save_to_disk wrote."""
    if (folder / _SAVED_SPLITS).is_file():
        splits = sorted(entry.name for entry in folder.iterdir() if (entry / _ONE_SAVED).is_file())
        folder = folder / _chosen_split(source, splits)
    if (folder / _ONE_SAVED).is_file():
        return Origin("saved", tuple(sorted(file for file in folder.iterdir() if file.is_file())), folder)
    splits_of_files = _files_by_split(folder)
    if not splits_of_files:
        raise DataError(f"{source.path}: a folder without data. It may hold {READABLE}, or what save_to_disk writes.")
    return Origin("files", splits_of_files[_chosen_split(source, list(splits_of_files))])


def _files_by_split(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Split -> files: train.jsonl, data/test-00000-of-00002.parquet; all are train where no name says a split."""
    from datasets.data_files import EmptyDatasetError, get_data_patterns, resolve_pattern

    try:
        patterns = get_data_patterns(str(folder))
    except (EmptyDatasetError, FileNotFoundError):
        return {}
    found: dict[str, tuple[Path, ...]] = {}
    for split, each in patterns.items():
        names = sorted({name for pattern in each for name in resolve_pattern(pattern, str(folder))})
        files = tuple(file for file in map(Path, names) if is_readable(file))
        if files:
            found[str(split)] = files
    return found


def _chosen_split(source: SourceConfig, splits: list[str]) -> str:
    if source.split not in splits:
        meant = did_you_mean(source.split, splits)
        hint = f" ({meant})" if meant else ""
        raise DataError(
            f"{source.path}: split {source.split!r} is none of its splits{hint}; set `split` to one of: "
            f"{', '.join(splits) or 'none'}."
        )
    return source.split
