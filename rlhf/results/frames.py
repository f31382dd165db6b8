"""Metrics and rollouts as pandas tables. Nothing is read or written here."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from reward_models.suggest import did_you_mean
from rlhf.errors import StageError
from rlhf.tracking.rollout_schema import TOKEN_FIELDS

__all__ = ["extremes", "metrics_frame", "per_prompt", "tokens_frame"]


def metrics_frame(series: Mapping[str, Sequence[tuple[int, float]]], stage: str) -> pd.DataFrame:
    """The curves of one stage, without its name: index `step`, a column a metric."""
    columns = {
        name.removeprefix(f"{stage}/"): pd.Series(dict(points), dtype="float64")
        for name, points in series.items()
        if name.startswith(f"{stage}/")
    }
    return pd.DataFrame(columns).sort_index().rename_axis(index="step")


def extremes(episodes: pd.DataFrame, by: str, count: int, *, lowest: bool) -> pd.DataFrame:
    """The `count` episodes with the lowest or highest number in column `by`; the first ones among equals.

    Raises:
        StageError: There is no such column of numbers.
    """
    numbers = list(episodes.select_dtypes("number").columns)
    if by not in numbers:
        meant = did_you_mean(by, numbers)
        raise StageError(f"rollouts have no column of numbers {by!r}; {meant or 'allowed: ' + ', '.join(numbers)}")
    known = episodes.dropna(subset=[by])
    return known.sort_values(by, ascending=lowest, kind="stable").head(count).reset_index(drop=True)


def per_prompt(episodes: pd.DataFrame) -> pd.DataFrame:
    """Scores of each prompt's episodes; `first` and `last` are means over its first and its last iteration."""
    rows = []
    for index, group in episodes.groupby("index"):
        means = group.groupby("iteration")["score"].mean()
        score = group["score"]
        rows.append(
            {
                "index": index,
                "prompt": group["prompt"].iloc[0],
                "episodes": len(group),
                "mean": score.mean(),
                "min": score.min(),
                "max": score.max(),
                "first": means.iloc[0],
                "last": means.iloc[-1],
            }
        )
    columns = ["index", "prompt", "episodes", "mean", "min", "max", "first", "last"]
    return pd.DataFrame(rows, columns=columns).set_index("index")


def tokens_frame(episode: "pd.Series[Any]") -> pd.DataFrame:
    """A row a token, with the columns of `TOKEN_FIELDS`; empty if no tokens were kept."""
    tokens = episode["tokens"]
    return pd.DataFrame([] if tokens is None else list(tokens), columns=list(TOKEN_FIELDS))
