"""What scoring has to know of an episode, and the one call that scores finished ones. `vector` plays them.

Scores come from `reward_models.combine`; how prompts and responses are handed over is decided here.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reward_models.chat import Message, Text, to_messages

if TYPE_CHECKING:
    from reward_models.combine import CombinedReward

Info = dict[str, Any]


@dataclass
class EpisodeState:
    """One environment's episode, as far as it has got."""

    origin: str  # the row or seed that it began with, in words
    prompt: Text = ""
    messages: list[Message] = field(default_factory=list)  # the conversation so far
    context: list[Message] = field(default_factory=list)  # the conversation before the last response
    turns: int = 0
    over: bool = False
    info: Info = field(default_factory=dict)  # of the last step
    response: str = ""  # the last one
    completion_ids: list[int] | None = None  # of the last response

    @property
    def scored_prompt(self) -> Text:
        """What came before the last response: in the row's form, behind several responses as messages."""
        return self.prompt if self.turns == 1 else self.context


def score_episodes(scorer: CombinedReward, episodes: Sequence[EpisodeState], infos: Sequence[Info]) -> dict[str, int]:
    """Score episodes as they stand, in one call.

    Args:
        scorer: The components of the score.
        episodes: (n,) episodes in which something was said.
        infos: (n,) their infos, which get `score`, `components` and `scored`.

    Returns:
        How often each component failed.
    """
    prompts = [episode.scored_prompt for episode in episodes]
    if any(isinstance(prompt, list) for prompt in prompts):
        prompts = [to_messages(prompt) for prompt in prompts]
    completions = [_completion(prompt, each.response) for prompt, each in zip(prompts, episodes, strict=True)]
    columns = _columns([info["columns"] for info in infos])
    if all(episode.completion_ids is not None for episode in episodes):
        columns["completion_ids"] = [episode.completion_ids for episode in episodes]
    scores = scorer(prompts, completions, **columns)
    for k, info in enumerate(infos):
        info["score"] = float(scores.total[k])
        info["components"] = {name: float(values[k]) for name, values in scores.components.items()}
        info["scored"] = not math.isnan(info["score"])
    return dict(scores.failures)


def _completion(prompt: Text, response: str) -> Text:
    return response if isinstance(prompt, str) else [{"role": "assistant", "content": response}]


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Turn the columns of each episode into one list per column; None where an episode lacks it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [copy.deepcopy(row.get(name)) for row in rows] for name in names}
