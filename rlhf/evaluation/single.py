"""One policy's episodes in numbers with intervals, over all prompts and for each group of them.

Two policies are compared in `compare`. Nothing is sampled or scored here.
"""

from collections.abc import Callable, Sequence
from typing import TypedDict

import numpy as np

from rlhf.episodes.episode import Episode
from rlhf.evaluation.bootstrap import mean_interval
from rlhf.evaluation.paired import Design, Floats, prompt_means
from rlhf.evaluation.pass_at_k import pass_at_k, sizes_of_k

__all__ = ["Estimate", "describe", "describe_groups"]


class Estimate(TypedDict):
    """A mean over prompts; value and interval are None where no prompt has a value."""

    value: float | None
    interval: list[float] | None  # 95%
    prompts: int  # that have a value


def describe(episodes: Sequence[Episode], design: Design, success_score: float | None) -> dict[str, Estimate]:
    """Describe what a policy earned and said.

    Args:
        episodes: (N,) the samples of a prompt one behind the other.
        design: How they are grouped, and how intervals are made: over prompts, never over single responses.
        success_score: A response with at least this score is right; None: there is no right and wrong.

    Returns:
        `score`; with `success_score` avg@n and pass@k; `components/NAME`; then length and end of the responses.
    """

    def read(value: Callable[[Episode], float]) -> Floats:
        return np.array([value(e) if e.failure is None else np.nan for e in episodes], dtype=np.float64)

    samples = design.samples_per_prompt
    scores = read(lambda episode: episode.score)
    per_prompt = {"score": prompt_means(scores, samples)}
    if success_score is not None:
        right = np.where(np.isnan(scores), np.nan, scores >= success_score)
        per_prompt[f"avg@{samples}"] = prompt_means(right, samples)
        per_prompt |= {f"pass@{k}": pass_at_k(right, samples, k) for k in sizes_of_k(samples) if k > 1}
    for name in dict.fromkeys(name for episode in episodes for name in episode.components):
        values = read(lambda episode, name=name: episode.components.get(name, np.nan))  # type: ignore[misc]
        per_prompt[f"components/{name}"] = prompt_means(values, samples)
    for name, value in _SAID.items():
        per_prompt[name] = prompt_means(read(value), samples)
    return {name: _estimate(values, design) for name, values in per_prompt.items()}


def describe_groups(
    episodes: Sequence[Episode], groups: Sequence[str], design: Design, success_score: float | None
) -> dict[str, dict[str, Estimate]]:
    """Describe each group of prompts by itself.

    Args:
        episodes: (N,)
        groups: (N,) the group that each episode's prompt belongs to.
        design: See `describe`.
        success_score: See `describe`.
    """
    chosen = {name: [e for e, group in zip(episodes, groups, strict=True) if group == name] for name in groups}
    return {name: describe(members, design, success_score) for name, members in sorted(chosen.items())}


_SAID: dict[str, Callable[[Episode], float]] = {
    "response_tokens": lambda episode: episode.response_length,
    "stopped_share": lambda episode: float(episode.stop_reason != "length"),
    "truncated_share": lambda episode: float(episode.truncated),
    "turns": lambda episode: float(len(episode.responses)),
}


def _estimate(values: Floats, design: Design) -> Estimate:
    known = values[~np.isnan(values)]
    if not len(known):
        return {"value": None, "interval": None, "prompts": 0}
    interval = mean_interval(known, resamples=design.resamples, seed=design.seed)
    return {"value": float(known.mean()), "interval": list(interval), "prompts": len(known)}
