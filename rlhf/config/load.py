"""From a YAML file and `key.path=value` overrides to a checked `Config`: the front door of the configuration.

    yaml_reader (text -> data with lines) -> tree (+ overrides) -> problems (checks) -> files (paths) -> provenance

All mistakes are reported at once, as one `ConfigError`. Data, models and functions that it names are not opened.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reward_models.suggest import closest
from rlhf.config.keys import dotted
from rlhf.config.paths import resolve_paths
from rlhf.config.problems import check
from rlhf.config.provenance import annotated_yaml, provenance_of
from rlhf.config.schema import Config
from rlhf.config.tree import OVERRIDE, Problem, Tree, apply_overrides, from_document
from rlhf.config.yaml_reader import read_yaml
from rlhf.errors import ConfigError
from rlhf.files.atomic import write_text

__all__ = ["LoadedConfig", "load_config", "save_resolved"]


@dataclass(frozen=True)
class LoadedConfig:
    """A configuration and where it came from.

    Attributes:
        config: The checked configuration.
        provenance: Dotted key of each value -> `default`, `FILE:LINE` or `override`.
        path: The file, or None if there was none.
    """

    config: Config
    provenance: dict[str, str]
    path: Path | None


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> LoadedConfig:
    """Reads and checks a configuration.

    Args:
        path: A YAML file; None starts from the defaults.
        overrides: `key.path=value`, the value in YAML; later ones win over earlier ones and all win over the file. A
            number in the key is an index of a list.

    Raises:
        ConfigError: The file cannot be read, or something in it or in the overrides is wrong; names every mistake.
    """
    tree = Tree() if path is None else _read(path)
    apply_overrides(tree, overrides)
    result = check(tree)
    if not isinstance(result, Config):
        raise ConfigError(_report(result, path))
    config = result if path is None else resolve_paths(result, path.parent)
    return LoadedConfig(config, provenance_of(config, tree.origins), path)


def save_resolved(loaded: LoadedConfig, path: Path) -> None:
    """Writes every key with where its value came from; loading the file gives the same `Config`."""
    write_text(path, annotated_yaml(loaded.config, loaded.provenance))


def _read(path: Path) -> Tree:
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, and a config is a file.{_files_in(path)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such config file{_near(path)}. Relative paths start at {Path.cwd()}.") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: byte {error.start + 1} is not UTF-8. Save the file as UTF-8.") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}. Name a YAML file.") from None
    try:
        return from_document(read_yaml(text), path.name)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _files_in(folder: Path) -> str:
    """What the user may have meant; a run folder keeps the configuration that it was made with."""
    files = sorted(entry for entry in folder.iterdir() if entry.suffix in (".yaml", ".yml"))
    return f" Name one in it: {', '.join(map(str, files[:5]))}." if files else " Name a YAML file."


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (there is no folder {path.parent})"
    known = [entry.name for entry in path.parent.iterdir() if entry.suffix in (".yaml", ".yml")]
    return "".join(f"; did you mean {path.with_name(name)}?" for name in closest(path.name, known))


def _report(problems: Sequence[Problem], path: Path | None) -> str:
    """All problems as one text, those of the file in the order of its lines."""
    count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
    ordered = sorted(problems, key=_line)
    return "\n".join(
        [f"{path or 'The configuration'} has {count}:", *(f"  {_sentence(problem)}" for problem in ordered)]
    )


def _line(problem: Problem) -> float:
    """Problems that stand nowhere come first, those of overrides last."""
    if problem.origin is None:
        return 0
    return float("inf") if problem.origin == OVERRIDE else int(problem.origin.rpartition(":")[2])


def _sentence(problem: Problem) -> str:
    key = f"{dotted(problem.path)}: " if problem.path else ""
    if problem.origin is None:
        return f"{key}{problem.message}"
    where = OVERRIDE if problem.origin == OVERRIDE else f"line {problem.origin.rpartition(':')[2]}"
    return f"{where}: {key}{problem.message}"
