"""Policy and critic as one module, so that one `prepare`, one optimizer and one backward pass serve both.

`forward` runs the trunks and reads them only where the policy chose a token. It returns log-probabilities and values,
never logits.
"""

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn

from rlhf.launch.runtime import Runtime
from rlhf.models.shared_trunk import CRITIC, Adapters
from rlhf.packing.microbatch import Microbatch
from rlhf.policies import head
from rlhf.policies.decoder_only import DecoderOnly


class TokenOutputs(NamedTuple):
    """What the models say about the n response tokens of a microbatch."""

    logprobs: Tensor  # (n,) log pi(a_t | s_t) in nats, at the sampling temperature
    entropies: Tensor  # (n,) in nats; zeros unless asked for
    values: Tensor  # (n,) V(s_t), the critic's view before the token is chosen; zeros without a critic
    final_values: Tensor  # (b,) V behind each row's last token


class SharedCritic(nn.Module):
    """A linear value head on the policy's own trunk. Starts at zero, so the first values are 0."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.score = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)


class AdapterCritic(SharedCritic):
    """The value head of a critic that runs the policy's trunk with an adapter of its own, named `critic`.

    Args:
        hidden_size: Of the trunk.
        trunk: Its fingerprint: the adapter means nothing on another one.
    """

    def __init__(self, hidden_size: int, trunk: str) -> None:
        super().__init__(hidden_size)
        self.trunk = trunk


class ActorCritic(nn.Module):
    """A policy and its critic.

    Args:
        policy: A causal language model, possibly with peft adapters.
        value_model: A sequence-classification model with one label (its own trunk and a `score` layer), a
            `SharedCritic`, an `AdapterCritic`, or None for advantage estimators without a critic.
        runtime: Where and in which precision. Under bfloat16 the trunks and the output layer's backward pass are
            lowered; weights, logits and values stay as they are.
    """

    def __init__(self, policy: nn.Module, value_model: nn.Module | None, runtime: Runtime) -> None:
        super().__init__()
        self.policy = policy
        self.value_model = value_model
        self.adapters: Any = Adapters(policy) if isinstance(policy, PeftModel) else None
        self.config: Any = head.unwrapped(policy).config  # what Accelerate reads
        self._actor = DecoderOnly(policy, runtime)
        self._critic = self._actor  # whose states are not read if there is no critic
        if value_model is not None and not isinstance(value_model, SharedCritic):
            self._critic = DecoderOnly(value_model, runtime)

    def forward(
        self, microbatch: Microbatch, temperature: float, *, entropy: bool = False, reference: bool = False
    ) -> TokenOutputs:
        """Evaluate a microbatch.

        Args:
            microbatch: Rows and the positions to read.
            temperature: Divides the logits.
            entropy: Whether entropies are wanted.
            reference: Whether to switch the policy's adapters off: then it is the reference policy, without a critic.
        """
        read = torch.cat([microbatch.predictors, microbatch.last])  # where tokens were chosen, then the rows' ends
        with self.adapters.using() if reference else nullcontext():
            states = self._actor.states(microbatch.tokens, read)
            logprobs, entropies = self._actor.logprobs(
                states[: len(microbatch.targets)], microbatch.targets, temperature, entropy=entropy
            )
        if reference or self.value_model is None:
            return TokenOutputs(
                logprobs, entropies, torch.zeros_like(logprobs), logprobs.new_zeros(len(microbatch.rows))
            )
        if isinstance(self.value_model, AdapterCritic):
            with self.adapters.using(CRITIC):
                states = self._actor.states(microbatch.tokens, read)
        elif self._critic is not self._actor:
            states = self._critic.states(microbatch.tokens, read)
        score: nn.Linear = self.value_model.score  # type: ignore[assignment]
        values = score(states.to(score.weight.dtype)).squeeze(-1).to(logprobs.dtype)
        return TokenOutputs(logprobs, entropies, *values.split([len(microbatch.targets), len(microbatch.rows)]))
