"""How likely a policy finds responses that it or another policy gave: the basis of KL and perplexity.

Both policies are evaluated here, by the same code on the same layout, and never by the sampler, whose numbers differ in
the last digits: so the log-ratio of two policies with equal weights is exactly 0.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from rlhf.episodes.episode import Episode
from rlhf.packing.microbatch import lay_out, microbatches
from rlhf.policies.policy import Policy

__all__ = ["response_logprobs"]


@torch.no_grad()
def response_logprobs(
    policy: Policy,
    episodes: Sequence[Episode],
    device: torch.device,
    *,
    temperatures: Sequence[float],
    microbatch_tokens: int,
) -> NDArray[np.float64]:
    """Sum log pi(token | what stands before it) over the policy's own tokens of each episode.

    Temperature acts behind the trunk, so several temperatures cost little more than one.

    Args:
        policy: Whoever is asked.
        episodes: (N,) what was said. Prompt tokens and those of the environment count as context only.
        device: Where the policy is.
        temperatures: (K,) each divides the logits once.
        microbatch_tokens: Tokens of one forward pass, padding included.

    Returns:
        (K, N) in nats, at most 0; NaN for an episode whose environment failed.
    """
    played = np.flatnonzero([e.failure is None for e in episodes])  # row of the batch -> episode
    rows = [(episodes[i].token_ids, episodes[i].response_mask) for i in played.tolist()]
    batch = lay_out([ids for ids, _ in rows], [mask for _, mask in rows], device)
    sums = np.full((len(temperatures), len(episodes)), np.nan)
    for microbatch in microbatches(batch, range(len(rows)), microbatch_tokens):
        states = policy.states(microbatch.tokens, microbatch.predictors)  # (t, d)
        tokens = batch.mask[microbatch.rows].sum(1).tolist()  # (b,) the t tokens lie row behind row
        for number, temperature in enumerate(temperatures):
            logprobs, _ = policy.logprobs(states, microbatch.targets, temperature)  # (t,)
            parts = torch.split(logprobs.double(), tokens)
            sums[number, played[microbatch.rows.cpu().numpy()]] = [part.sum().item() for part in parts]
    return sums
