"""`rlhf/Dialogue-v0`: several turns with a scripted customer, who is satisfied, insists or takes offence.

The customer follows fixed rules, so that the same responses always lead to the same conversation. What meets a need is
defined in `scenario`. After each response:

    it holds a phrase to avoid      nothing counts as met; the customer says `offended`         reward -0.25
    it meets k > 0 open needs       `thanks` of the first of them, then the first open need     reward k / all needs
    it meets none                   `insist` of the first open need                             reward -0.1
    it meets the last open needs    `closing`; terminated                                       reward k / all needs

A need may be met before the customer has raised it. A need is raised by its `ask` and repeated by its `insist`. A
satisfied customer is worth 1 in all, less what was lost on the way; answering nothing for n turns earns -0.1 n. After
`max_turns` responses an unsatisfied customer leaves: truncated. Nothing here measures style; that is what reward
functions are for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, ClassVar

from envs.base import Opening, Reply, RewardSource, TextEnv, Turns
from envs.errors import TextEnvError
from envs.tasks.scenario import Need, Scenario, load_scenarios, mentions_any, parse_scenario

NO_PROGRESS = -0.1
OFFENCE = -0.25


class DialogueEnv(TextEnv):
    """Several turns with a scripted customer, rewarded for each need that a response meets.

    `info` has `needs_met`, `needs_open` and `needs_met_now`, lists of names. The prompt is always a list of messages,
    and `columns` has `scenario` (its id) and `domain`.

    Args:
        scenarios: Path of a JSONL file, or a list of scenarios as mappings; None takes those of the package.
        max_turns: Most responses in one episode.

    Raises:
        TextEnvError: `max_turns` is below 1, there is no scenario, or one is malformed.
    """

    turns: ClassVar[Turns] = "several"
    reward_source: ClassVar[RewardSource] = "environment"

    def __init__(self, scenarios: str | Path | Sequence[Mapping[str, Any]] | None = None, max_turns: int = 4) -> None:
        super().__init__()
        if isinstance(max_turns, bool) or not isinstance(max_turns, int) or max_turns < 1:
            raise TextEnvError(f"max_turns is {max_turns!r}; it must be an integer of at least 1.")
        self._scenarios = _all_scenarios(scenarios)
        self._max_turns = max_turns
        self._scenario = self._scenarios[0]
        self._met: set[str] = set()
        self._raised: set[str] = set()
        self._turns = 0

    @property
    def num_rows(self) -> int:
        """Number of scenarios."""
        return len(self._scenarios)

    def open_row(self, index: int) -> Opening:
        """Begin with the opening message of scenario `index`."""
        self._scenario = self._scenarios[index]
        self._met = set()
        self._raised = {self._scenario.needs[0].name}
        self._turns = 0
        return Opening(
            prompt=[{"role": "user", "content": self._scenario.opening}],
            columns={"scenario": self._scenario.id, "domain": self._scenario.domain},
            details=self._details([]),
        )

    def reply(self, response: str) -> Reply:
        """Judge the response by the rules in the module's text."""
        self._turns += 1
        offended = mentions_any(response, self._scenario.avoid)
        met_now = [] if offended else [need for need in self._open() if need.is_met_by(response)]
        self._met.update(need.name for need in met_now)
        reward = OFFENCE if offended else len(met_now) / len(self._scenario.needs) if met_now else NO_PROGRESS
        satisfied = not self._open()
        return Reply(
            message=self._scenario.offended if offended else self._answer(met_now),
            reward=reward,
            terminated=satisfied,
            truncated=not satisfied and self._turns >= self._max_turns,
            details=self._details(met_now),
        )

    def _open(self) -> list[Need]:
        return [need for need in self._scenario.needs if need.name not in self._met]

    def _answer(self, met_now: list[Need]) -> str:
        still_open = self._open()
        if not still_open:
            return self._scenario.closing
        need = still_open[0]
        line = need.insist if need.name in self._raised else need.ask
        self._raised.add(need.name)
        return f"{met_now[0].thanks} {line}" if met_now else line

    def _details(self, met_now: list[Need]) -> dict[str, Any]:
        return {
            "needs_met": [need.name for need in self._scenario.needs if need.name in self._met],
            "needs_open": [need.name for need in self._open()],
            "needs_met_now": [need.name for need in met_now],
        }


def _all_scenarios(given: str | Path | Sequence[Mapping[str, Any]] | None) -> tuple[Scenario, ...]:
    if given is None:
        return default_scenarios()
    if isinstance(given, str | Path):
        return load_scenarios(given)
    if isinstance(given, Mapping) or not isinstance(given, Sequence) or not given:
        raise TextEnvError(
            f"scenarios is {given!r}; it must be the path of a JSONL file or a list of at least one scenario."
        )
    return tuple(parse_scenario(row, f"scenarios[{i}]") for i, row in enumerate(given))


@lru_cache(maxsize=1)
def default_scenarios() -> tuple[Scenario, ...]:
    """Return the scenarios that ship with the package."""
    with as_file(files("envs").joinpath("data", "dialogue", "scenarios.jsonl")) as path:
        return load_scenarios(path)
