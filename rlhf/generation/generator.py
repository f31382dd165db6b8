"""What a generator is: requests go in, samples come out. The engines are in files of their own."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Request:
    """One response to sample."""

    prompt_ids: Sequence[int]
    key: int  # names the response's noise, see noise.response_key
    max_tokens: int
    min_tokens: int = 0  # the stop token is not sampled before


@dataclass
class Sample:
    """One sampled response. The stop token, if there is one, is its last token."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)  # nats, at the sampling temperature
    stop_reason: str = "length"  # or "eos", "stop_string"


class Generator(Protocol):
    """An engine that samples responses of the policy.

    What is sampled for a request depends on the request alone, not on its neighbours.
    """

    def update(self) -> None:
        """Take over the policy's weights as they are now; nothing can be sampled before."""

    def generate(self, requests: Sequence[Request]) -> list[Sample]:
        """Sample one response for each request, in their order."""
        ...

    def release(self) -> None:
        """Free what the next `update` makes anew."""
