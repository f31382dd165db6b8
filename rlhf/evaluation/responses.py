"""The responses themselves, side by side, as rows for people and for a later judge. Nothing is computed here."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from reward_models.chat import Text, to_messages
from rlhf.episodes.episode import Episode
from rlhf.evaluation.compare import Answers
from rlhf.tracking.text import as_text

__all__ = ["flat_rows", "responses_of", "sample_table"]


def sample_table(before: Sequence[Episode], after: Sequence[Episode], rows: int) -> list[dict[str, Any]]:
    """The first `rows` pairs, one a prompt as long as there are new prompts. Nothing is picked by its score."""
    pairs = list(zip(before, after, strict=True))
    pairs.sort(key=lambda pair: pair[0].sample_index)  # stable: first samples of all prompts, then second ones
    return [
        {
            "prompt": first.prompt,
            "before": _said(first),
            "after": _said(second),
            "before_score": _finite(first.score),
            "after_score": _finite(second.score),
        }
        for first, second in pairs[:rows]
    ]


def flat_rows(table: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows with conversations as text, for tables that hold text only."""
    texts = ("prompt", "before", "after")
    return [{key: as_text(value) if key in texts else value for key, value in row.items()} for row in table]


def responses_of(before: Answers, after: Answers) -> list[dict[str, Any]]:
    """Every pair of responses with everything known about it."""
    return [
        {
            "index": first.index,
            "sample_index": first.sample_index,
            "prompt": first.prompt,
            "columns": first.columns,
            "before": _known(first, before.log_ratios[i], before.before_logprobs[i]),
            "after": _known(second, after.log_ratios[i], after.before_logprobs[i]),
        }
        for i, (first, second) in enumerate(zip(before.episodes, after.episodes, strict=True))
    ]


def _known(episode: Episode, log_ratio: float, before_logprob: float) -> dict[str, Any]:
    return {
        "messages": episode.messages,
        "score": _finite(episode.score),
        "components": {name: _finite(value) for name, value in episode.components.items()},
        "tokens": episode.response_length,
        "stop_reason": episode.stop_reason,
        "kl": _finite(log_ratio),
        "before_logprob": _finite(before_logprob),
    }


def _said(episode: Episode) -> Text:
    """The response; of several turns all that was said after the prompt."""
    if len(episode.responses) == 1:
        return episode.responses[0]
    return episode.messages[len(to_messages(episode.prompt)) :]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
