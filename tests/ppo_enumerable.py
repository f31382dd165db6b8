"""A language model of which every response can be listed: V = 4, at most 3 tokens, 40 responses.

`PrefixPolicy` is a language model that is a table, with one row of logits for every prefix, so its distributions can be
chosen at will. `World` adds rewards and a reference policy, and finds the KL-regularised optimum by backward induction.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from ppo_helpers import EOS, episode
from torch import Tensor, nn
from transformers import PretrainedConfig

from rlhf.episodes.episode import Episode

V, LONGEST = 4, 3
Conversation = tuple[int, ...]
PROMPT: Conversation = (2,)


def all_sequences(vocab_size: int, longest: int, eos: int) -> Iterator[Conversation]:
    """Every response: it ends at its first EOS, or at `longest` tokens."""

    def extend(prefix: Conversation) -> Iterator[Conversation]:
        if len(prefix) == longest or (prefix and prefix[-1] == eos):
            yield prefix
        else:
            for token in range(vocab_size):
                yield from extend((*prefix, token))

    return extend(())


class PrefixTrunk(nn.Module):
    """Hidden state = one-hot of the number of the conversation so far; unknown conversations share the last number."""

    def __init__(self, states: Sequence[Conversation]) -> None:
        super().__init__()
        self.numbers = {state: number for number, state in enumerate(states)}
        # Says dtype and device, as a real trunk's weights do; it is not used.
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64), requires_grad=False)

    def forward(
        self, input_ids: Tensor, past_key_values: Any = None, position_ids: Tensor | None = None, **_: Any
    ) -> SimpleNamespace:
        """Return `last_hidden_state` (B, L, states + 1). The cache, if given, keeps the tokens in place of keys."""
        said, ends = input_ids, torch.arange(input_ids.shape[1]).expand_as(input_ids)
        if past_key_values is not None:
            keys = input_ids[:, None, :, None].double()
            said = past_key_values.update(keys, keys, 0)[0][:, 0, :, 0].long()
            ends = ends if position_ids is None else position_ids
        numbers = [
            [self.numbers.get(tuple(row[: end + 1]), len(self.numbers)) for end in row_ends]
            for row, row_ends in zip(said.tolist(), ends.tolist(), strict=True)
        ]
        hidden = nn.functional.one_hot(torch.tensor(numbers), len(self.numbers) + 1)
        return SimpleNamespace(last_hidden_state=hidden.double())


class PrefixPolicy(nn.Module):
    """A language model that is a table of logits, `lm_head.weight` (V, states + 1)."""

    base_model_prefix = "model"

    def __init__(self, states: Sequence[Conversation], vocab_size: int) -> None:
        super().__init__()
        self.model = PrefixTrunk(states)
        self.lm_head = nn.Linear(len(states) + 1, vocab_size, bias=False, dtype=torch.float64)
        self.config = PretrainedConfig(vocab_size=vocab_size, hidden_size=len(states) + 1, num_hidden_layers=1)

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    def table(self) -> dict[Conversation, Tensor]:
        """Log-probabilities (V,) of every state at temperature 1."""
        rows = self.lm_head.weight.detach().log_softmax(0)
        return {state: rows[:, number] for state, number in self.model.numbers.items()}

    def load(self, logprobs: dict[Conversation, Tensor], temperature: float = 1.0) -> "PrefixPolicy":
        """Set logits such that at `temperature` the next token has these log-probabilities (V,)."""
        with torch.no_grad():
            for state, row in logprobs.items():
                self.lm_head.weight[:, self.model.numbers[state]] = row * temperature
        return self


class PrefixCritic(nn.Module):
    """A critic that is a table of values, `score.weight` (1, states + 1)."""

    base_model_prefix = "model"

    def __init__(self, states: Sequence[Conversation]) -> None:
        super().__init__()
        self.model = PrefixTrunk(states)
        self.score = nn.Linear(len(states) + 1, 1, bias=False, dtype=torch.float64)

    def load(self, values: dict[Conversation, float]) -> "PrefixCritic":
        """Set the values; states that are left out get a huge one, so that reading one of them shows."""
        with torch.no_grad():
            self.score.weight.fill_(1e6)
            for state, value in values.items():
                self.score.weight[0, self.model.numbers[state]] = value
        return self


RESPONSES = list(all_sequences(V, LONGEST, EOS))
STATES = sorted({PROMPT + response[:t] for response in RESPONSES for t in range(len(response))})
ENDS = [PROMPT + response for response in RESPONSES]


@dataclass
class World:
    """Rewards of every token, the reference policy, and what the game is worth from each state on."""

    rewards: dict[Conversation, float]  # of the conversation's last token
    reference: dict[Conversation, Tensor]  # state -> log-probabilities (V,)
    ends: dict[Conversation, float]  # finished conversation -> V behind it
    coefficient: float
    gamma: float

    def soft_optimum(self) -> tuple[dict[Conversation, Tensor], dict[Conversation, float]]:
        """V*(s) = b ln sum_a pi_ref exp(Q / b); pi* = pi_ref exp((Q - V) / b); Q = r + gamma V*(s')."""
        values, policy = dict(self.ends), {}
        for state in sorted(STATES, key=len, reverse=True):
            following = [(*state, token) for token in range(V)]
            q = torch.tensor([self.rewards[s] + self.gamma * values[s] for s in following], dtype=torch.float64)
            values[state] = self.coefficient * float((self.reference[state] + q / self.coefficient).logsumexp(0))
            policy[state] = self.reference[state] + (q - values[state]) / self.coefficient
        return policy, values

    def episodes(self, *, truncate_unfinished: bool = False) -> list[Episode]:
        """Every response once."""
        return [
            episode(
                PROMPT,
                response,
                rewards=[self.rewards[PROMPT + response[: t + 1]] for t in range(len(response))],
                stop_reason="eos" if response[-1] == EOS else "length",
                truncated=truncate_unfinished and response[-1] != EOS,
                index=number,
            )
            for number, response in enumerate(RESPONSES)
        ]


def random_world(seed: int = 0, *, coefficient: float = 0.7, gamma: float = 1.0, dense: bool = True) -> World:
    """A reward on every token, or on the last one of each response if not `dense`."""
    generator = torch.Generator().manual_seed(seed)
    rewards = {
        conversation: float(torch.randn((), generator=generator, dtype=torch.float64)) * (dense or conversation in ENDS)
        for conversation in STATES + ENDS
    }
    reference = {state: torch.randn(V, generator=generator, dtype=torch.float64).log_softmax(0) for state in STATES}
    return World(rewards, reference, dict.fromkeys(ENDS, 0.0), coefficient, gamma)


def response_logprobs(policy: dict[Conversation, Tensor]) -> Tensor:
    """Log-probability (40,) of every response."""
    return torch.stack(
        [sum((policy[PROMPT + r[:t]][token] for t, token in enumerate(r)), torch.zeros(())) for r in RESPONSES]
    )
