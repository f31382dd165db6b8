"""Episodes from a tokenised data set, as TRL's PPOTrainer takes it: prompts are token ids, one response each.

The score comes from modules that read token ids (TRL's reward model), from reward functions, which read text, or from
both.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from reward_models.combine import CombinedReward, Component
from rlhf.episodes.episode import Episode
from rlhf.episodes.lengths import Lengths, check_prompt
from rlhf.episodes.plan import Start
from rlhf.episodes.text import response_text
from rlhf.errors import DataError
from rlhf.generation.generator import Generator, Request, Sample
from rlhf.generation.noise import response_key
from rlhf.packing.packed import PackedRows
from rlhf.policies import head

_TOKEN_COLUMNS = ("input_ids", "attention_mask", "labels", "prompts", "completions", "completion_ids")

Reward = nn.Module | Callable[..., Any]


class TokenDatasetSource:
    """Plays one response to each prompt of a data set with an `input_ids` column.

    Args:
        dataset: The rows.
        tokenizer: The policy's.
        lengths: Limits of prompts and responses.
        rewards: Modules and functions that score a response.
        weights: One for each.
        stop_strings: Text before which a response is cut.
        batch_size: Conversations that a module reads at once.
        bf16: Whether modules run under bfloat16 autocast.
    """

    def __init__(
        self,
        dataset: Any,
        tokenizer: PreTrainedTokenizerBase,
        lengths: Lengths,
        rewards: Sequence[Reward],
        weights: Sequence[float],
        stop_strings: Sequence[str] = (),
        batch_size: int = 64,
        *,
        bf16: bool = False,
    ) -> None:
        self.prompts = [_without_padding(number, row, tokenizer.pad_token_id) for number, row in enumerate(dataset)]
        if not self.prompts:
            raise DataError("the data set has no rows: give at least one prompt")
        self.columns = [{name: value for name, value in row.items() if name not in _TOKEN_COLUMNS} for row in dataset]
        for index, prompt in enumerate(self.prompts):
            check_prompt(index, prompt, lengths, tokenizer.decode(prompt))
        self.tokenizer = tokenizer
        self.lengths = lengths
        self.stop_strings = stop_strings
        self.token_rewards = {id(r): TokenReward(r, batch_size, bf16) for r in rewards if isinstance(r, nn.Module)}
        components = [
            Component(name=name, function=self.token_rewards.get(id(reward), reward), weight=weight)
            for name, reward, weight in zip(_names(rewards), rewards, weights, strict=True)
        ]
        self.reward = CombinedReward(components) if components else None  # None: responses are only to be looked at

    @property
    def num_prompts(self) -> int:
        """Rows of the data set."""
        return len(self.prompts)

    def collect(self, generator: Generator, starts: Sequence[Start], *, seed: int, iteration: int) -> list[Episode]:
        """Sample and score one response per start."""
        prompts = [self.prompts[start.index] for start in starts]
        sampled = generator.generate(
            [
                Request(
                    prompt_ids=prompt,
                    key=response_key(seed, iteration, prompt, start.sample_index, start.index),
                    max_tokens=self.lengths.room(len(prompt)),
                    min_tokens=self.lengths.min_response_tokens,
                )
                for prompt, start in zip(prompts, starts, strict=True)
            ]
        )
        episodes = [self._episode(*row) for row in zip(starts, prompts, sampled, strict=True)]
        self._score(episodes, sampled)
        return episodes

    def _episode(self, start: Start, prompt: list[int], sampled: Sample) -> Episode:
        length = len(sampled.token_ids)
        text = self.tokenizer.decode(prompt, skip_special_tokens=True)
        response = response_text(self.tokenizer, sampled, self.stop_strings)
        return Episode(
            prompt=text,
            token_ids=[*prompt, *sampled.token_ids],
            response_mask=[False] * len(prompt) + [True] * length,
            sampled_logprobs=[0.0] * len(prompt) + sampled.logprobs,
            rewards=[0.0] * (len(prompt) + length),
            responses=[response],
            messages=[{"role": "user", "content": text}, {"role": "assistant", "content": response}],
            stop_reason=sampled.stop_reason,
            terminated=True,
            truncated=False,
            columns=self.columns[start.index],
            index=start.index,
            sample_index=start.sample_index,
        )

    def _score(self, episodes: list[Episode], sampled: list[Sample]) -> None:
        if self.reward is None:
            return
        for token_reward in self.token_rewards.values():
            token_reward.conversations = [episode.token_ids for episode in episodes]
        scores = self.reward(
            [episode.prompt for episode in episodes],
            [episode.responses[0] for episode in episodes],
            completion_ids=[result.token_ids for result in sampled],
            **{name: [episode.columns[name] for episode in episodes] for name in self.columns[0]},
        )
        for row, episode in enumerate(episodes):
            episode.score = episode.rewards[-1] = float(scores.total[row])
            episode.components = {name: float(values[row]) for name, values in scores.components.items()}


class TokenReward:
    """A module that reads token ids, in the form of a reward function: it is told the conversations beforehand."""

    def __init__(self, module: nn.Module, batch_size: int, bf16: bool) -> None:
        self.module = module
        self.batch_size = batch_size
        self.bf16 = bf16
        self.conversations: Sequence[Sequence[int]] = []

    def __call__(self, *_: Any, **__: Any) -> list[float | None]:
        """Score the conversations."""
        parts = range(0, len(self.conversations), self.batch_size)
        scores = [score_tokens(self.module, self.conversations[i : i + self.batch_size], bf16=self.bf16) for i in parts]
        return np.concatenate(scores).tolist()  # type: ignore[no-any-return]


def _names(rewards: Sequence[Reward]) -> list[str]:
    """Name each reward by its function or class; of several with one name, the later ones get a number."""
    names, seen = [], Counter[str]()
    for reward in rewards:
        name = getattr(reward, "__name__", type(reward).__name__)
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return names


@torch.no_grad()
def score_tokens(
    module: Any, rows: Sequence[Sequence[int]], *, bf16: bool = False
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Score conversations with a sequence-classification model, read at each one's last token.

    Args:
        module: Has a trunk and a `score` layer, and shares the policy's tokenizer.
        rows: Token ids, without padding.
        bf16: Whether the trunk runs under bfloat16 autocast; scores keep their digits.
    """
    device = next(module.parameters()).device
    tokens = PackedRows.from_rows(rows, device)
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        hidden = head.hidden_states(module, tokens, tokens.last)
    hidden = hidden.to(next(module.score.parameters()).dtype)
    scores: np.ndarray[Any, np.dtype[np.float64]] = module.score(hidden).squeeze(-1).double().cpu().numpy()
    return scores


def input_ids(index: int, row: Any) -> Sequence[int]:
    """Return the token ids of a row.

    Raises:
        DataError: The row has none.
    """
    if "input_ids" not in row:
        raise DataError(
            f"row {index} of the data set has no input_ids; it has {', '.join(row)}. Tokenise the prompts first, e.g. "
            "dataset.map(lambda row: tokenizer(row['prompt']))"
        )
    return row["input_ids"]  # type: ignore[no-any-return]


def _without_padding(index: int, row: Any, pad_token_id: int | None) -> list[int]:
    """Return a row's prompt. The attention mask says what is padding; without one, leading and trailing pads are."""
    ids = [int(token) for token in input_ids(index, row)]
    if "attention_mask" in row:
        return [token for token, real in zip(ids, row["attention_mask"], strict=True) if real]
    while ids and ids[0] == pad_token_id:
        ids = ids[1:]
    while ids and ids[-1] == pad_token_id:
        ids = ids[:-1]
    return ids
