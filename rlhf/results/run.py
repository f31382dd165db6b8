"""`rlhf.load_run`: what a finished or half-finished run folder holds. Nothing here writes or computes results.

Every part may be missing (a run with only an SFT stage has no evaluate.json); what is there must be readable.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from rlhf.errors import StageError
from rlhf.files.run_folder import STAGES
from rlhf.results.frames import extremes, metrics_frame, per_prompt, tokens_frame
from rlhf.tracking import rollouts
from rlhf.tracking.jsonl import read_records, read_series
from rlhf.tracking.rollout_schema import schema_of

__all__ = ["Run", "load_run"]


@dataclass(frozen=True)
class Run:
    """The content of a run folder at the time it was loaded; rollouts are read when they are asked for.

    Attributes:
        path: The folder.
        config: Text of config.yaml, with where each value came from; empty if missing.
        manifest: Content of manifest.json; empty if missing.
        evaluation: Content of evaluate.json, the comparison of the policies; empty if missing.
        series: Metric -> [(step, value), ...].
        seconds: Stage -> duration, for the stages that have run.
    """

    path: Path
    config: str
    manifest: dict[str, Any]
    evaluation: dict[str, Any]
    series: dict[str, list[tuple[int, float]]]
    seconds: dict[str, float]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.resolve().name

    @property
    def iterations(self) -> list[int]:
        """The iterations of PPO whose rollouts are there, counted from 1."""
        return list(rollouts.list_files(self.path))

    def metrics(self, stage: str) -> pd.DataFrame:
        """The curves of a stage: a row a step (its index), a column a metric, NaN where it was not logged.

        Args:
            stage: "sft", "reward", "ppo" or "evaluate".

        Raises:
            StageError: There is no such stage.
        """
        if stage not in STAGES:
            raise StageError(f"stage {stage!r} does not exist; allowed: {', '.join(STAGES)}")
        return metrics_frame(self.series, stage)

    def rollout_table(self, iteration: int | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Episodes as a pyarrow table, in the order in which they were played. docs/rollouts.md explains the columns.

        Args:
            iteration: Only this one, from 1; None: all.
            columns: Only these.

        Raises:
            StageError: There is no such iteration, or a file cannot be read.
        """
        files = rollouts.list_files(self.path)
        if iteration is not None and iteration not in files:
            has = f"iterations {min(files)} to {max(files)}" if files else "no rollouts"
            raise StageError(f"{self.path} has no rollouts of iteration {iteration}: it has {has}")
        chosen = files.values() if iteration is None else [files[iteration]]
        tables = [rollouts.read_table(path, columns) for path in chosen]
        if not tables:
            return schema_of([]).empty_table()
        return pa.concat_tables(tables, promote_options="default")

    def rollouts(self, iteration: int | None = None) -> pd.DataFrame:
        """The same as a pandas table, a row an episode."""
        return self.rollout_table(iteration).to_pandas()

    def worst(self, count: int = 5, *, by: str = "score", iteration: int | None = None) -> pd.DataFrame:
        """The episodes with the lowest values, the lowest first; those without a value are left out.

        Args:
            count: How many.
            by: A column of numbers: "score", "reward", "kl", "length", "component/NAME".
            iteration: Only of this one, from 1.

        Raises:
            StageError: There is no such iteration or column.
        """
        return extremes(self.rollouts(iteration), by, count, lowest=True)

    def best(self, count: int = 5, *, by: str = "score", iteration: int | None = None) -> pd.DataFrame:
        """The episodes with the highest values, the highest first; see `worst`."""
        return extremes(self.rollouts(iteration), by, count, lowest=False)

    def by_prompt(self) -> pd.DataFrame:
        """A row a prompt: its text, how many episodes, their mean, lowest and highest score, first and last mean."""
        return per_prompt(self.rollout_table(columns=["iteration", "index", "prompt", "score"]).to_pandas())

    def tokens(self, episode: "pd.Series[Any]") -> pd.DataFrame:
        """The tokens of one episode, a row each.

        Args:
            episode: A row of `rollouts`, `worst` or `best`.
        """
        return tokens_frame(episode)


def load_run(path: str | Path) -> Run:
    """Reads a run folder.

    Args:
        path: The folder that `rlhf run` wrote, runs/NAME; the run may go on, or have failed.

    Raises:
        StageError: There is no such folder, nothing of a run is in it, or one of its files is broken.
    """
    folder = Path(path)
    config = folder / "config.yaml"
    manifest = _read_json(folder / "manifest.json")
    series = read_series(folder)
    evaluation = _read_json(folder / "evaluate.json")
    if not (manifest or series or evaluation or config.is_file()):
        raise StageError(
            f"{folder} is not a run folder: it has no config.yaml, manifest.json, metrics.jsonl or evaluate.json. "
            "Give the folder that `rlhf run` wrote, runs/NAME"
        )
    return Run(
        path=folder,
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
        manifest=manifest,
        evaluation=evaluation,
        series=series,
        seconds=_stage_seconds(folder, manifest),
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StageError(f"{path} is not JSON ({error}); remove it and run its stage again") from None
    if not isinstance(content, dict):
        raise StageError(f"{path} holds a {type(content).__name__}, not an object; remove it and run its stage again")
    return content


def _stage_seconds(folder: Path, manifest: dict[str, Any]) -> dict[str, float]:
    """Durations by the manifest; for a stage that is not in it (yet), from its first to its last logged line."""
    entries = manifest.get("stages", manifest)
    times: dict[str, list[float]] = {}
    for record in read_records(folder):
        times.setdefault(record["stage"], []).append(record["time"])
    seconds = {}
    for stage in STAGES:
        entry = entries.get(stage) if isinstance(entries, dict) else None
        if isinstance(entry, dict) and isinstance(entry.get("seconds"), int | float):
            seconds[stage] = float(entry["seconds"])
        elif stage in times:
            seconds[stage] = max(times[stage]) - min(times[stage])
    return seconds
