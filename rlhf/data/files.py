"""Raw rows of one file: its suffix says how it is read, whatever its case, and whether it is unpacked first.

First step of `load.py`. Columns are neither mapped nor checked here. The formats themselves are in `json_files.py` and
`tables.py`; which files a path means, in `origin.py`.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from reward_models.suggest import paths_like
from rlhf.data.json_files import read_json
from rlhf.data.raw import RawRow
from rlhf.data.tables import read_csv, read_parquet
from rlhf.errors import DataError

READERS: dict[str, Callable[[BinaryIO, str], Iterator[RawRow]]] = {
    ".jsonl": read_json,
    ".json": read_json,
    ".ndjson": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
}
_PACKED = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}  # suffix -> pyarrow's name; Parquet packs its columns itself
READABLE = f"{', '.join(READERS)} files (all but Parquet also as {', '.join(_PACKED)})"


def is_readable(path: Path) -> bool:
    """Whether a file's suffix says that `read_file` knows it; the file need not exist."""
    kind, packing = _suffixes(path)
    return kind in READERS and not (packing and kind == ".parquet")


def is_table_of_text(path: Path) -> bool:
    """Whether all cells of a file are text: CSV and TSV."""
    return _suffixes(path)[0] in (".csv", ".tsv")


def read_file(path: Path, name: str) -> Iterator[RawRow]:
    """Read the rows of a file.

    Args:
        path: A file that `is_readable`.
        name: What the user calls the file; it opens each row's place.

    Raises:
        DataError: If the file as a whole cannot be read.
    """
    kind, packing = _suffixes(path)
    try:
        with _open(path, packing) as file:
            yield from READERS[kind](file, name)
    except (OSError, EOFError) as error:
        raise DataError(f"{name}: cannot be read: {error}. Check the file and its permissions.") from error


def missing_file(path: Path, name: str) -> DataError:
    """The error for a path that does not exist, with similar names from the nearest folder that does."""
    folder, wanted, near = paths_like(path)
    there = [entry.name for entry in sorted(folder.iterdir()) if is_readable(entry)]
    known = [entry.name for entry in near] or there[:5]
    hint = f"{'did you mean' if near else 'it holds'} {', '.join(known)}" if known else "it holds no data files"
    return DataError(
        f"{name}: no such file; folder {folder.resolve()} has no {wanted}: {hint}? "
        f"Relative paths start at {Path.cwd()}."
    )


def _suffixes(path: Path) -> tuple[str, str | None]:
    """The suffix that names the format, and the codec of a packed file: `.jsonl`, `gzip` for `a.JSONL.gz`."""
    last = path.suffix.lower()
    if last in _PACKED:
        return Path(path.stem).suffix.lower(), _PACKED[last]
    return last, None


def _open(path: Path, packing: str | None) -> BinaryIO:
    if packing is None:
        return path.open("rb")
    import pyarrow

    return cast(BinaryIO, io.BufferedReader(pyarrow.input_stream(str(path), compression=packing)))
