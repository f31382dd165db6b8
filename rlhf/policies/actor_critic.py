"""Policy and critic as one module, so that one `prepare`, one optimizer and one backward pass serve both.

`forward` runs the trunks and reads them only where the policy chose a token. It returns log-probabilities and values,
never logits.
"""

from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn

from rlhf.models.shared_trunk import CRITIC, Adapters
from rlhf.policies import head
from rlhf.policies.logprobs import token_logprobs
from rlhf.ppo.batch import Microbatch


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
        bf16: Whether the trunks run under bfloat16 autocast, and the output layer's backward pass; weights, logits and
            values stay as they are.
    """

    def __init__(self, policy: nn.Module, value_model: nn.Module | None, *, bf16: bool = False) -> None:
        super().__init__()
        self.policy = policy
        self.value_model = value_model
        self.bf16 = bf16
        self.adapters: Any = Adapters(policy) if isinstance(policy, PeftModel) else None
        self.config: Any = head.unwrapped(policy).config  # what Accelerate and the model card read

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
        adapters_off = self.adapters.using() if reference else nullcontext()
        with adapters_off:
            hidden = self._run(self.policy, microbatch)
            logprobs, entropies = token_logprobs(
                self.policy,
                hidden[: len(microbatch.targets)],
                microbatch.targets,
                temperature,
                entropy=entropy,
                gradient_dtype=torch.bfloat16 if self.bf16 else None,
            )
        if reference or self.value_model is None:
            return TokenOutputs(
                logprobs, entropies, torch.zeros_like(logprobs), logprobs.new_zeros(len(microbatch.rows))
            )
        if isinstance(self.value_model, AdapterCritic):
            with self.adapters.using(CRITIC):
                hidden = self._run(self.policy, microbatch)
        elif not isinstance(self.value_model, SharedCritic):
            hidden = self._run(self.value_model, microbatch)
        score: nn.Linear = self.value_model.score  # type: ignore[assignment]
        values = score(hidden.to(score.weight.dtype)).squeeze(-1).to(logprobs.dtype)
        return TokenOutputs(logprobs, entropies, *values.split([len(microbatch.targets), len(microbatch.rows)]))

    def _run(self, model: nn.Module, microbatch: Microbatch) -> Tensor:
        """Return the hidden states (t + b, d) behind which tokens were chosen, then those of each row's last token."""
        read = torch.cat([microbatch.predictors, microbatch.last])
        with torch.autocast(read.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            return head.hidden_states(model, microbatch.tokens, read)
