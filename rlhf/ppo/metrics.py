"""The numbers of one iteration, from its episodes, its batch and its update."""

from collections.abc import Sequence

import numpy as np
import torch

from rlhf.episodes.episode import Episode
from rlhf.ppo.batch import AdvantagedRollout, ScoredRollout
from rlhf.ppo.masked import masked_mean


def rollout_metrics(episodes: Sequence[Episode], batch: AdvantagedRollout) -> dict[str, float]:
    """Describe a rollout; KL and entropy are per episode (summed over its tokens), in nats.

    Args:
        episodes: All episodes of the iteration, those that nobody could score included.
        batch: The scored ones.
    """
    scores = np.array([episode.score for episode in episodes if np.isfinite(episode.score)])
    values = {
        "score": float(scores.mean()),
        "score_std": float(scores.std()),
        "reward": float(batch.rewards.sum(1).mean()),
        "kl": float(batch.kl.sum(1).mean()),
        "entropy": float(torch.where(batch.mask, -batch.logprobs, 0.0).sum(1).mean()),
        "response_tokens": float(batch.mask.sum(1).double().mean()),
        "stopped_share": float(batch.stopped.double().mean()),
        "truncated_share": float(batch.truncated.double().mean()),
        **left_out(episodes),
        "explained_variance": explained_variance(batch),
        **sampler_mismatch(batch),
    }
    for name in sorted({name for episode in episodes for name in episode.components}):
        known = [episode.components[name] for episode in episodes if np.isfinite(episode.components.get(name, np.nan))]
        if known:
            values[f"components/{name}"] = float(np.mean(known))
    return values | by_environment(episodes)


def by_environment(episodes: Sequence[Episode]) -> dict[str, float]:
    """Mean score, episodes and response length of each environment, where a run has several."""
    values: dict[str, float] = {}
    names = {episode.environment for episode in episodes}
    for name in sorted(names) if len(names) > 1 else ():
        known = [each for each in episodes if each.environment == name and np.isfinite(each.score)]
        values[f"environments/{name}/episodes"] = float(len(known))
        if known:
            values[f"environments/{name}/score"] = float(np.mean([each.score for each in known]))
            tokens = [each.response_length for each in known]
            values[f"environments/{name}/response_tokens"] = float(np.mean(tokens))
    return values


def left_out(episodes: Sequence[Episode]) -> dict[str, float]:
    """Count the episodes that stay out of the update: those that nobody could score, and those that failed."""
    failed = sum(episode.failure is not None for episode in episodes)
    without = sum(not np.isfinite(episode.score) for episode in episodes)
    return {"unscored_episodes": float(without - failed), "failed_episodes": float(failed)}


def explained_variance(batch: AdvantagedRollout) -> float:
    """1 - Var(returns - values) / Var(returns) over all tokens; 0 where the returns do not vary."""
    returns, values = batch.returns[batch.mask].double(), batch.values[batch.mask].double()
    variance = returns.var(correction=0)
    return float(1 - (returns - values).var(correction=0) / variance) if variance > 1e-12 else 0.0


def sampler_mismatch(batch: ScoredRollout) -> dict[str, float]:
    """How far the sampler's log-probabilities are from the trainer's own, and the mean weight that would correct it.

    Both are exact (0 and 1) only where sampler and trainer have the same arithmetic; truncated sampling shows here as
    a weight below 1, the mass that it kept.
    """
    gap = torch.where(batch.mask, batch.logprobs - batch.sampled_logprobs, 0.0)
    return {
        "sampler_logprob_gap": float(gap.abs().max()),
        "importance_weight": float(masked_mean(gap.clamp(-20, 20).exp(), batch.mask)),
    }
