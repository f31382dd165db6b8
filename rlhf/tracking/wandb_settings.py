"""How W&B is used: from section `tracking.wandb`, W&B's own environment variables, and defaults, in this order.

A key that is not null wins over its variable, a variable over the default. Where a key and a variable differ, or a
variable has no effect here, a line of the log says so. W&B itself is not imported: most of it may be switched off.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rlhf.errors import ConfigError

if TYPE_CHECKING:
    from rlhf.config.schema import WandbConfig

__all__ = ["WandbSettings", "wandb_settings"]

_MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
_UPLOADS = {"true": "upload", "end": "upload", "checkpoint": "upload", "false": "reference"}
_TRUE = ("1", "true", "yes", "on", "y", "t")
_VARIABLES = {
    "mode": "WANDB_MODE",
    "project": "WANDB_PROJECT",
    "entity": "WANDB_ENTITY",
    "group": "WANDB_RUN_GROUP",
    "name": "WANDB_NAME",
    "tags": "WANDB_TAGS",
    "artifacts": "WANDB_LOG_MODEL",
}
_WITHOUT_EFFECT = {
    "WANDB_DIR": "W&B's files lie in the run folder",
    "WANDB_RUN_ID": "each stage is a run, and its id is kept in wandb_runs.json",
    "WANDB_RESUME": "a stage that is resumed goes on in its run",
    "WANDB_JOB_TYPE": "it is the stage",
}


@dataclass(frozen=True)
class WandbSettings:
    """W&B as it is used.

    Attributes:
        mode: "online", "offline" or "disabled".
        project: Project name.
        entity: User or team; None: the account's own.
        group: What joins the stages of a run.
        name: Name of the run; the stage is appended.
        tags: Tags of the run.
        artifacts: "upload" models and data, "reference" them by place and hash, or "none".
        notes: Lines for the log: what won over what.
    """

    mode: Literal["online", "offline", "disabled"]
    project: str
    entity: str | None
    group: str
    name: str
    tags: tuple[str, ...]
    artifacts: str
    notes: tuple[str, ...] = ()


def wandb_settings(options: "WandbConfig", environment: Mapping[str, str], run_name: str) -> WandbSettings:
    """Brings the three together.

    Args:
        options: Section `tracking.wandb`.
        environment: `os.environ`.
        run_name: Name of the run folder: the default of `name` and `group`.

    Raises:
        ConfigError: A variable has a value that it cannot have.
    """
    given = {key: getattr(options, key) or None for key in _VARIABLES}
    found = {key: value for key in _VARIABLES if (value := _from_environment(key, environment)) is not None}
    default = {
        "mode": "offline",
        "project": "rlhf",
        "entity": None,
        "group": run_name,
        "name": run_name,
        "tags": (),
        "artifacts": "reference",
    }
    chosen: dict[str, Any] = default | found | {key: value for key, value in given.items() if value is not None}
    chosen["tags"] = tuple(chosen["tags"])
    notes = [
        f"tracking.wandb.{key} is {_shown(given[key])}, so {_VARIABLES[key]}={environment.get(_VARIABLES[key], '')} "
        "is not used"
        for key, value in found.items()
        if given[key] is not None and _shown(given[key]) != _shown(value)
    ]
    if chosen["mode"] != "disabled":
        notes += [f"{name} is not used: {why}" for name, why in _WITHOUT_EFFECT.items() if environment.get(name)]
    return WandbSettings(**chosen, notes=tuple(notes))


def _from_environment(key: str, environment: Mapping[str, str]) -> Any:
    """What a variable says, in this project's words; None if it says nothing."""
    if key == "mode" and environment.get("WANDB_DISABLED", "").lower() in _TRUE:
        return "disabled"
    variable = _VARIABLES[key]
    text = environment.get(variable, "").strip()
    if not text:
        return None
    allowed = {"mode": _MODES, "artifacts": _UPLOADS}.get(key)
    if allowed is not None:
        if text.lower() not in allowed:
            raise ConfigError(
                f"the environment variable {variable} is {text!r}; allowed: {', '.join(allowed)}. Correct it, or set "
                f"tracking.wandb.{key}, which wins over it"
            )
        return allowed[text.lower()]
    return tuple(tag.strip() for tag in text.split(",") if tag.strip()) if key == "tags" else text


def _shown(value: Any) -> str:
    return ", ".join(value) if isinstance(value, list | tuple) else str(value)
