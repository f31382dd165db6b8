"""One episode: what was said, token by token, and what it earned. Made by `rollout`, read by `batch` and tracking."""

from dataclasses import dataclass, field
from typing import Any

from reward_models.chat import Message, Text


@dataclass
class Episode:
    """A finished conversation between the policy and an environment.

    The four per-token lists run over the whole conversation and have the same length L.
    """

    prompt: Text
    token_ids: list[int]  # (L,) prompt, responses and whatever the environment said in between
    response_mask: list[bool]  # (L,) True where the policy sampled the token
    sampled_logprobs: list[float]  # (L,) log-prob in nats at sampling time; 0 where response_mask is False
    rewards: list[float]  # (L,) the environment's rewards, each on the last token of its turn
    responses: list[str]  # one a turn
    messages: list[Message]
    stop_reason: str  # of the last turn: "eos", "stop_string" or "length"
    terminated: bool
    truncated: bool
    score: float = 0.0  # sum of rewards; NaN: nobody could score it, it stays out of the update
    components: dict[str, float] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)
    index: int = 0  # which prompt of the environment
    sample_index: int = 0  # which of several samples of that prompt
    environment: str = ""  # its name, where a run has several
    failure: str | None = None  # what went wrong in the environment; then the score is NaN, and tokens may be missing

    @property
    def response_length(self) -> int:
        """Number of tokens that the policy sampled."""
        return sum(self.response_mask)
