"""Did you mean ...? What an error message says about a name that nobody knows. Used by all three packages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

__all__ = ["closest", "did_you_mean", "paths_like"]


def closest(name: object, known: Iterable[object], most: int = 1) -> list[str]:
    """Return the known names that look most like `name`, best first; neither case nor `-` instead of `_` counts."""
    forms = {_form(entry): str(entry) for entry in reversed(list(known))}
    return [forms[form] for form in difflib.get_close_matches(_form(name), forms, n=most)]


def did_you_mean(name: object, known: Iterable[object], most: int = 1) -> str:
    """Return `did you mean NAME?`, or nothing if no known name is like `name`."""
    near = closest(name, known, most)
    return f"did you mean {', '.join(near)}?" if near else ""


def paths_like(path: Path) -> tuple[Path, str, list[Path]]:
    """Find out where a path that does not exist leaves the paths that do.

    Returns:
        The nearest folder above it that exists, the part of the path that this folder lacks, and what the folder holds
        of a similar name.
    """
    folder, wanted = path.parent, path.name
    while not folder.is_dir():
        folder, wanted = folder.parent, folder.name
    near = closest(wanted, sorted(entry.name for entry in folder.iterdir()), most=3)
    return folder, wanted, [folder / name for name in near]


def _form(name: object) -> str:
    return str(name).lower().replace("-", "_")
