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
        log_ratios: (N,) log(policy / SFT policy) at the sampling temperature, summed over the response; nats.
        sft_logprobs: (N,) log-probability under the SFT policy at temperature 1, summed over the response; nats.
    """

    episodes: list[Episode]
    log_ratios: Floats
    sft_logprobs: Floats

    def read(self, value: Callable[[Episode], float]) -> Floats:
        """One number of each episode, (N,)."""
        return np.array([value(episode) for episode in self.episodes], dtype=np.float64)

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


def compare(sft: Answers, ppo: Answers, design: Design) -> tuple[dict[str, Entry], Share]:
    """Compare the answers of two policies to the same prompts in the same order.

    KL(PPO || SFT) is the mean over the PPO policy's own responses of their summed log-ratio: the estimator k1,
    unbiased, so that a small KL may come out below 0. Perplexity is exp(-sum of log-probabilities / number of tokens).

    Returns:
        The metrics by name, and the win rate by score.
    """
    assert len(sft.episodes) == len(ppo.episodes), "both policies answer the same prompts"
    metrics = {"score": means_of(sft.scores, ppo.scores, design)}
    for name in _component_names(sft, ppo):
        metrics[f"components/{name}"] = means_of(sft.component(name), ppo.component(name), design)
    metrics["kl"] = means_of(sft.log_ratios, ppo.log_ratios, design)
    metrics["kl_per_token"] = quotients_of((sft.log_ratios, sft.tokens), (ppo.log_ratios, ppo.tokens), design)
    surprise = (-sft.sft_logprobs, sft.tokens), (-ppo.sft_logprobs, ppo.tokens)
    metrics["perplexity"] = quotients_of(*surprise, design, np.exp)
    metrics["response_tokens"] = means_of(sft.tokens, ppo.tokens, design)
    metrics["distinct_2"] = _without_interval(_distinct(sft), _distinct(ppo))
    metrics["stopped_share"] = means_of(sft.stopped, ppo.stopped, design)
    return metrics, wins_of(sft.scores, ppo.scores, design)


def _component_names(sft: Answers, ppo: Answers) -> list[str]:
    return list(dict.fromkeys(name for side in (sft, ppo) for episode in side.episodes for name in episode.components))


def _distinct(answers: Answers) -> float | None:
    return distinct_n(response for episode in answers.episodes for response in episode.responses)


def _without_interval(sft: float | None, ppo: float | None) -> Entry:
    # Resampling repeats prompts, and with them their words: it would call every policy repetitive.
    difference = None if sft is None or ppo is None else ppo - sft
    return {"sft": sft, "ppo": ppo, "difference": difference, "interval": None}
