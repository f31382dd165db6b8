"""How likely a policy finds responses that it or another policy gave: the basis of KL and perplexity.

Both policies are evaluated here, by the same code on the same layout, and never by the sampler, whose numbers differ in
the last digits: so the log-ratio of two policies with equal weights is exactly 0.
"""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rlhf.episodes.episode import Episode
from rlhf.policies import head
from rlhf.policies.logprobs import token_logprobs
from rlhf.ppo.batch import collate, microbatches

__all__ = ["response_logprobs"]


@torch.no_grad()
def response_logprobs(
    policy: nn.Module, episodes: Sequence[Episode], *, temperatures: Sequence[float], microbatch_tokens: int
) -> NDArray[np.float64]:
    """Sum log pi(token | what stands before it) over the policy's own tokens of each episode.

    Temperature acts behind the trunk, so several temperatures cost little more than one.

    Args:
        policy: A causal language model; the trunk runs in the precision of its weights, the logits in float32 at least.
        episodes: (N,) what was said. Prompt tokens and those of the environment count as context only.
        temperatures: (K,) each divides the logits once.
        microbatch_tokens: Tokens of one forward pass, padding included.

    Returns:
        (K, N) in nats, at most 0.
    """
    batch = collate(episodes, torch.float32, next(policy.parameters()).device)
    sums = np.zeros((len(temperatures), len(episodes)))
    for microbatch in microbatches(batch, range(len(episodes)), microbatch_tokens):
        hidden = head.hidden_states(policy, microbatch.tokens, microbatch.predictors)  # (t, d)
        tokens = batch.mask[microbatch.rows].sum(1).tolist()  # (b,) the t tokens lie row behind row
        for number, temperature in enumerate(temperatures):
            logprobs, _ = token_logprobs(policy, hidden, microbatch.targets, temperature)  # (t,)
            parts = torch.split(logprobs.double(), tokens)
            sums[number, microbatch.rows.cpu().numpy()] = [part.sum().item() for part in parts]
    return sums
