"""The head of the page: what came out, how far the run is, where its time went, what it ran on; its configuration."""

import math
from dataclasses import dataclass
from typing import Any

import yaml

from rlhf.files.run_folder import STAGES
from rlhf.report.comparison import explain, verdict
from rlhf.report.sections import TITLES
from rlhf.results.run import Run
from rlhf.tracking.text import number

__all__ = ["ConfigLine", "Phase", "Stage", "config_lines", "facts", "headline", "quality", "stages"]

# Stage -> curves whose first and last value tell in one line what the stage did; of PPO all, of others the first.
_OUTCOMES = {
    "sft": ("sft/validation_loss", "sft/loss"),
    "reward": ("reward/validation_accuracy", "reward/accuracy", "reward/loss"),
    "ppo": ("ppo/score", "ppo/kl"),
    "evaluate": (),
}
_PHASES = {
    "rollout": "sampling",
    "score": "scoring",
    "update": "update",
    "train": "training",
    "validation": "validation",
}
_QUALITY = (
    "validation_accuracy",
    "validation_margin",
    "expected_calibration_error",
    "validation_loss",
    "normalisation_mean",
    "normalisation_std",
)


@dataclass(frozen=True)
class Phase:
    """A part of a stage's time."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Stage:
    """One stage of the run, as far as it is."""

    title: str
    state: str  # "finished", "unfinished" or "not started"
    outcome: str
    seconds: float | None
    phases: list[Phase]


@dataclass(frozen=True)
class Quality:
    """One number about the reward model."""

    name: str
    meaning: str
    unit: str
    value: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class ConfigLine:
    """One line of config.yaml, with where its value came from."""

    text: str
    origin: str
    kind: str  # "default", "chosen" or "plain"


def headline(run: Run) -> str:
    """The verdict with its interval; of a run that is not so far, how far it is."""
    known = verdict(run.evaluation)
    unfinished = [stage for stage in stages(run) if stage.state != "finished"]
    if known and not unfinished:
        return known
    if unfinished:
        state = "has not finished" if unfinished[0].state == "unfinished" else "has not started"
        so_far = f" So far: {unfinished[0].outcome}." if unfinished[0].outcome else ""
        earlier = f" An earlier evaluation says: {known}" if known else ""
        return f"This run is not complete: the stage {unfinished[0].title} {state}.{so_far}{earlier}"
    if run.evaluation:
        return "The evaluation has one policy or no score: there is no difference to show."
    return "This run compares no policies: its configuration has no stage evaluate." if run.config else ""


def stages(run: Run) -> list[Stage]:
    """The stages that the configuration names or that have left something, in order."""
    finished = run.manifest.get("stages", run.manifest)
    tree = _configuration(run)
    found = []
    for stage in STAGES:
        started = stage in run.seconds
        if not (started or tree.get(stage) is not None):
            continue
        state = "finished" if stage in finished else "unfinished" if started else "not started"
        outcome = _outcome(stage, run)
        if stage == "ppo" and state == "unfinished":
            outcome = f"{_iterations(run, tree)}{', ' if outcome else ''}{outcome}"
        found.append(Stage(TITLES[stage], state, outcome, run.seconds.get(stage), _phases(stage, run)))
    return found


def facts(run: Run) -> list[tuple[str, str]]:
    """What the run ran on: seed, start, versions, and whatever else the manifest says of machine and code."""
    records = [record for record in (run.manifest.get("stages") or {}).values() if isinstance(record, dict)]
    if not records:
        return []
    last = records[-1]
    found = [("Seed", str(last["seed"]))] if "seed" in last else []
    if "started" in records[0]:
        found.append(("Started, UTC", str(records[0]["started"]).replace("T", " ").removesuffix("+00:00")))
    for name in ("commit", "machine"):
        if last.get(name):
            found.append((name.capitalize(), _plain(last[name])))
    return found + [(name, str(version)) for name, version in (last.get("versions") or {}).items()]


def quality(run: Run) -> list[Quality]:
    """How well the reward model ranks pairs that it was not trained on: the last value of each number."""
    rows = []
    for name in _QUALITY:
        points = run.series.get(f"reward/{name}")
        if not points:
            continue
        ends = [run.series.get(f"reward/{name}_{end}") for end in ("low", "high")]
        interval = (ends[0][-1][1], ends[1][-1][1]) if ends[0] and ends[1] else None
        meaning, unit = explain(f"reward/{name}")
        rows.append(Quality(name.replace("_", " ").capitalize(), meaning, unit, points[-1][1], interval))
    return rows


def config_lines(text: str) -> list[ConfigLine]:
    """config.yaml line by line, as `rlhf.config.provenance` writes it."""
    lines = []
    for line in text.splitlines():
        value, mark, origin = line.rpartition("  # ")
        if not mark or line.startswith("#"):
            lines.append(ConfigLine(line, "", "plain"))
        else:
            lines.append(ConfigLine(value, origin, "default" if origin == "default" else "chosen"))
    return lines


def _configuration(run: Run) -> dict[str, Any]:
    """The resolved configuration; empty if it cannot be read, for the page has other things to show."""
    try:
        tree = yaml.safe_load(run.config)
    except yaml.YAMLError:
        return {}
    return tree if isinstance(tree, dict) else {}


def _iterations(run: Run, tree: dict[str, Any]) -> str:
    done = max((points[-1][0] for name, points in run.series.items() if name.startswith("ppo/") and points), default=0)
    planned = tree["ppo"].get("iterations") if isinstance(tree.get("ppo"), dict) else None
    return f"{done} of {planned} iterations" if planned else f"{done} iterations"


def _outcome(stage: str, run: Run) -> str:
    parts: list[str] = []
    for name in _OUTCOMES[stage]:
        points = run.series.get(name)
        if points and not (parts and stage != "ppo"):
            label = name.removeprefix(f"{stage}/").replace("_", " ")
            first, last = number(points[0][1]), number(points[-1][1])
            parts.append(f"{label} {last}" if len(points) == 1 else f"{label} {first} \N{RIGHTWARDS ARROW} {last}")
    return ", ".join(parts)


def _phases(stage: str, run: Run) -> list[Phase]:
    """Where the stage's time went, as far as it was logged, the rest as "other"."""
    logged = {
        name.rpartition("/")[2]: math.fsum(value for _, value in points)
        for name, points in run.series.items()
        if name.startswith(f"{stage}/seconds/")
    }
    found = [Phase(label, logged[name]) for name, label in _PHASES.items() if name in logged]
    rest = run.seconds.get(stage, 0.0) - math.fsum(phase.seconds for phase in found)
    return [*found, Phase("other", rest)] if found and rest > 0 else found


def _plain(value: Any) -> str:
    return ", ".join(f"{name} {entry}" for name, entry in value.items()) if isinstance(value, dict) else str(value)
