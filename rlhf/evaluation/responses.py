"""The responses themselves, side by side, as rows for people and for a later judge. Nothing is computed here."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from reward_models.chat import Text, to_messages
from rlhf.episodes.episode import Episode
from rlhf.evaluation.compare import Answers
from rlhf.tracking.text import as_text

__all__ = ["flat_rows", "responses_of", "sample_table"]


def sample_table(sft: Sequence[Episode], ppo: Sequence[Episode], rows: int) -> list[dict[str, Any]]:
    """The first `rows` pairs, one a prompt as long as there are new prompts. Nothing is picked by its score."""
    pairs = list(zip(sft, ppo, strict=True))
    pairs.sort(key=lambda pair: pair[0].sample_index)  # stable: first samples of all prompts, then second ones
    return [
        {
            "prompt": before.prompt,
            "sft": _said(before),
            "ppo": _said(after),
            "sft_score": _finite(before.score),
            "ppo_score": _finite(after.score),
        }
        for before, after in pairs[:rows]
    ]


def flat_rows(table: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows with conversations as text, for tables that hold text only."""
    texts = ("prompt", "sft", "ppo")
    return [{key: as_text(value) if key in texts else value for key, value in row.items()} for row in table]


def responses_of(sft: Answers, ppo: Answers) -> list[dict[str, Any]]:
    """Every pair of responses with everything known about it."""
    return [
        {
            "index": before.index,
            "sample_index": before.sample_index,
            "prompt": before.prompt,
            "columns": before.columns,
            "sft": _known(before, sft.log_ratios[i], sft.sft_logprobs[i]),
            "ppo": _known(after, ppo.log_ratios[i], ppo.sft_logprobs[i]),
        }
        for i, (before, after) in enumerate(zip(sft.episodes, ppo.episodes, strict=True))
    ]


def _known(episode: Episode, log_ratio: float, sft_logprob: float) -> dict[str, Any]:
    return {
        "messages": episode.messages,
        "score": _finite(episode.score),
        "components": {name: _finite(value) for name, value in episode.components.items()},
        "tokens": episode.response_length,
        "stop_reason": episode.stop_reason,
        "kl": float(log_ratio),
        "sft_logprob": float(sft_logprob),
    }


def _said(episode: Episode) -> Text:
    """The response; of several turns all that was said after the prompt."""
    if len(episode.responses) == 1:
        return episode.responses[0]
    return episode.messages[len(to_messages(episode.prompt)) :]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
