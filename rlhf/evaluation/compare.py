"""From what two policies answered to the metrics of evaluate.json. Nothing is sampled or scored here."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rlhf.episodes.episode import Episode
from rlhf.evaluation.paired import Design, Entry, Floats, Share, means_of, quotients_of, wins_of
from rlhf.evaluation.text_metrics import distinct_n

__all__ = ["Answers", "compare"]


@dataclass(frozen=True)
class Answers:
    """What one policy said: N = P prompts times S samples, the samples of a prompt one behind the other.

    Attributes:
        episodes: (N,)
        log_ratios: (N,) log(policy / policy before) at the sampling temperature, summed over the response; nats.
        before_logprobs: (N,) log-probability under the policy before at temperature 1, summed over the response; nats.
    """

    episodes: list[Episode]
    log_ratios: Floats
    before_logprobs: Floats

    def read(self, value: Callable[[Episode], float]) -> Floats:
        """One number of each episode, (N,); NaN for one whose environment failed."""
        values = [value(episode) if episode.failure is None else np.nan for episode in self.episodes]
        return np.array(values, dtype=np.float64)

    @property
    def scores(self) -> Floats:
        """(N,) NaN where nothing could score an episode."""
        return self.read(lambda episode: episode.score)

    @property
    def tokens(self) -> Floats:
        """(N,) tokens that the policy sampled, stop token included."""
        return self.read(lambda episode: episode.response_length)

    @property
    def stopped(self) -> Floats:
        """(N,) 1 where the last response ended by itself, 0 where the limit ended it."""
        return self.read(lambda episode: float(episode.stop_reason != "length"))

    def component(self, name: str) -> Floats:
        """(N,) one component of the score, unweighted; NaN where it does not apply."""
        return self.read(lambda episode: episode.components.get(name, np.nan))


def compare(before: Answers, after: Answers, design: Design) -> tuple[dict[str, Entry], Share]:
    """Compare the answers of two policies to the same prompts in the same order.

    KL(after || before) is the mean over the later policy's own responses of their summed log-ratio: the estimator k1,
    unbiased, so that a small KL may come out below 0. Perplexity is exp(-sum of log-probabilities / number of tokens).

    Returns:
        The metrics by name, and the win rate by score.
    """
    assert len(before.episodes) == len(after.episodes), "both policies answer the same prompts"
    metrics = {"score": means_of(before.scores, after.scores, design)}
    for name in _component_names(before, after):
        metrics[f"components/{name}"] = means_of(before.component(name), after.component(name), design)
    metrics["kl"] = means_of(before.log_ratios, after.log_ratios, design)
    metrics["kl_per_token"] = quotients_of((before.log_ratios, before.tokens), (after.log_ratios, after.tokens), design)
    surprise = (-before.before_logprobs, before.tokens), (-after.before_logprobs, after.tokens)
    metrics["perplexity"] = quotients_of(*surprise, design, np.exp)
    metrics["response_tokens"] = means_of(before.tokens, after.tokens, design)
    metrics["distinct_2"] = _without_interval(_distinct(before), _distinct(after))
    metrics["stopped_share"] = means_of(before.stopped, after.stopped, design)
    return metrics, wins_of(before.scores, after.scores, design)


def _component_names(before: Answers, after: Answers) -> list[str]:
    episodes = [*before.episodes, *after.episodes]
    return list(dict.fromkeys(name for episode in episodes for name in episode.components))


def _distinct(answers: Answers) -> float | None:
    return distinct_n(response for episode in answers.episodes for response in episode.responses)


def _without_interval(before: float | None, after: float | None) -> Entry:
    # Resampling repeats prompts, and with them their words: it would call every policy repetitive.
    difference = None if before is None or after is None else after - before
    return {"before": before, "after": after, "difference": difference, "interval": None}
