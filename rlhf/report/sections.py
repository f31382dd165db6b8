"""The curves of a run, stage by stage, as sections of the page; what was logged only once is a number there."""

from collections.abc import Sequence
from dataclasses import dataclass

from rlhf.files.run_folder import STAGES
from rlhf.report.comparison import explain
from rlhf.report.curves import Chart, charts_of
from rlhf.results.run import Run

__all__ = ["TITLES", "Section", "curve_sections"]

TITLES = {"sft": "Supervised fine-tuning", "reward": "Reward model", "ppo": "PPO", "evaluate": "Evaluation"}
_SHORT = {"sft": "SFT curves", "reward": "Reward curves", "ppo": "PPO curves"}
_ORDER = ("ppo", "reward", "sft")  # what people look for first


@dataclass(frozen=True)
class Section:
    """The curves of one stage, and what it logged only once.

    Attributes:
        stage: "sft", "reward" or "ppo"; the evaluation stands in its table.
        title: Its heading.
        short: Its name in the navigation.
        first: Number of its first chart on the page.
        main: The well-known curves.
        rest: All others.
        single: Name, value, unit and meaning of what was logged once.
    """

    stage: str
    title: str
    short: str
    first: int
    main: list[Chart]
    rest: list[Chart]
    single: list[tuple[str, float, str, str]]


def curve_sections(runs: Sequence[Run]) -> list[Section]:
    """A section for each stage that logged anything.

    Args:
        runs: The run of the page first, then those whose curves are drawn over its.
    """
    assert set(_ORDER) < set(STAGES)
    series = {run.name if number == 0 else _other(run, runs[0]): run.series for number, run in enumerate(runs)}
    sections: list[Section] = []
    count = 0
    for stage in _ORDER:
        main, rest = charts_of(stage, series)
        single = [
            (name.removeprefix(f"{stage}/"), points[0][1], unit, meaning)
            for name, points in runs[0].series.items()
            if name.startswith(f"{stage}/") and len(points) == 1
            for meaning, unit in [explain(name)]
        ]
        if main or rest or single:
            sections.append(Section(stage, TITLES[stage], _SHORT[stage], count, main, rest, single))
            count += len(main) + len(rest)
    return sections


def _other(run: Run, first: Run) -> str:
    """The name of a run that is drawn over the first; its whole path if both have the same name."""
    return run.name if run.name != first.name else str(run.path)
