"""The plain generator: this process's own sampler, on a copy of the policy that is fit for decoding."""

from collections.abc import Callable, Sequence

from torch import nn

from rlhf.config.ppo import RolloutConfig
from rlhf.generation.generator import Request, Sample
from rlhf.generation.rollout_policy import RolloutPolicy
from rlhf.generation.sampler import Sampler
from rlhf.launch.runtime import Runtime


class TorchGenerator:
    """Samples with torch, in this process.

    Args:
        policy: The policy, possibly with peft adapters or spread over processes by ZeRO-3.
        settings: Section `ppo.rollout`.
        stop_token_ids: Tokens that end a response.
        decode: The tokenizer's function from ids to text.
        runtime: Where and in which precision.
        on_tokens: Called with the number of tokens of each decoding step.
    """

    def __init__(
        self,
        policy: nn.Module,
        settings: RolloutConfig,
        stop_token_ids: Sequence[int],
        decode: Callable[[Sequence[int]], str],
        runtime: Runtime,
        on_tokens: Callable[[int], None] | None = None,
    ) -> None:
        self.settings = settings
        self.stop_token_ids = tuple(stop_token_ids)
        self.decode = decode
        self.runtime = runtime
        self.on_tokens = on_tokens
        self._weights = RolloutPolicy(policy, runtime)
        self._sampler: Sampler | None = None

    def update(self) -> None:
        """See `Generator`."""
        policy = self._weights.refresh().eval()
        self._sampler = Sampler(
            policy, self.settings, self.stop_token_ids, self.decode, runtime=self.runtime, on_tokens=self.on_tokens
        )

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        """See `Generator`."""
        if self._sampler is None:
            raise RuntimeError("generate was called before update: the generator has no weights yet")
        return self._sampler(requests)

    def release(self) -> None:
        """See `Generator`."""
        self._sampler = None
        self._weights.release()
