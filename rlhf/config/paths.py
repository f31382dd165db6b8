"""Where relative paths of a configuration begin: the one place that decides it.

A relative path is looked for in the current folder first and then in the folder of the config file, so that a config
runs from where its author runs it, and a folder with a config and its data can be moved. What is found beside the
config file gets its folder in front; everything else stays as it is written (it may be a Hub id, a module or a built-in
name), and whoever opens it says what is missing. Free-form `args` and `kwargs` are not touched.
"""

import glob
from pathlib import Path
from typing import Any, TypeVar

from rlhf.config.base import Section
from rlhf.config.data import SourceConfig
from rlhf.config.model import ModelConfig
from rlhf.config.ppo import CriticConfig, RewardComponentConfig

_PATHS: dict[type[Section], tuple[str, ...]] = {
    ModelConfig: ("path", "chat_template"),
    SourceConfig: ("path",),
    RewardComponentConfig: ("function", "path"),
    CriticConfig: ("path",),
}
SectionT = TypeVar("SectionT", bound=Section)


def resolve_paths(section: SectionT, folder: Path) -> SectionT:
    """The same section with paths that only exist below `folder` made relative to the current one."""
    changes: dict[str, Any] = {}
    for name in type(section).model_fields:
        value = getattr(section, name)
        if name in _PATHS.get(type(section), ()) and isinstance(value, str):
            new: Any = _resolve(value, folder)
        else:
            new = _resolve_inside(value, folder)
        if new != value:
            changes[name] = new
    return section.model_copy(update=changes) if changes else section


def _resolve_inside(value: Any, folder: Path) -> Any:
    if isinstance(value, Section):
        return resolve_paths(value, folder)
    if isinstance(value, list):
        return [_resolve_inside(entry, folder) for entry in value]
    if isinstance(value, dict):
        return {key: _resolve_inside(entry, folder) for key, entry in value.items()}
    return value


def _resolve(value: str, folder: Path) -> str:
    """`value` or `folder/value`; of `file.py:function` only the file counts."""
    file, colon, function = value.rpartition(":") if ".py:" in value else (value, "", "")
    path = Path(file).expanduser()
    if path.is_absolute() or not file or _is_there(path) or not _is_there(folder / path):
        return value
    return f"{folder / path}{colon}{function}"


def _is_there(path: Path) -> bool:
    return path.exists() or (glob.has_magic(str(path)) and bool(glob.glob(str(path), recursive=True)))
