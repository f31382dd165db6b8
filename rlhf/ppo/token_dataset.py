"""Episodes from a tokenised data set, as TRL's PPOTrainer takes it: prompts are token ids, one response each.

The score comes from a module that reads token ids (TRL's reward model), or from reward functions, which read text.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from reward_models.combine import CombinedReward, Component
from rlhf.errors import DataError
from rlhf.ppo import head
from rlhf.ppo.episode import Episode
from rlhf.ppo.noise import response_key
from rlhf.ppo.rollout import Lengths, Start, check_prompt, response_text
from rlhf.ppo.sampler import Request, Sampled, Sampler

_TOKEN_COLUMNS = ("input_ids", "attention_mask", "labels", "prompts", "completions", "completion_ids")

Reward = nn.Module | Callable[..., Any]


class TokenDatasetSource:
    """Plays one response to each prompt of a data set with an `input_ids` column."""

    def __init__(
        self,
        dataset: Any,
        tokenizer: PreTrainedTokenizerBase,
        lengths: Lengths,
        rewards: Sequence[Reward],
        weights: Sequence[float],
        stop_strings: Sequence[str] = (),
    ) -> None:
        self.prompts = [_without_padding(row, tokenizer.pad_token_id) for row in dataset]
        if not self.prompts:
            raise DataError("the data set has no rows: give at least one prompt")
        self.columns = [{name: value for name, value in row.items() if name not in _TOKEN_COLUMNS} for row in dataset]
        for index, prompt in enumerate(self.prompts):
            check_prompt(index, prompt, lengths, tokenizer.decode(prompt))
        self.tokenizer = tokenizer
        self.lengths = lengths
        self.stop_strings = stop_strings
        self.modules = [(r, w) for r, w in zip(rewards, weights, strict=True) if isinstance(r, nn.Module)]
        functions = [
            Component(name=getattr(r, "__name__", type(r).__name__), function=r, weight=w)
            for r, w in zip(rewards, weights, strict=True)
            if not isinstance(r, nn.Module)
        ]
        self.functions = CombinedReward(functions) if functions else None

    @property
    def num_prompts(self) -> int:
        """Rows of the data set."""
        return len(self.prompts)

    def collect(self, sampler: Sampler, starts: Sequence[Start], *, seed: int, iteration: int) -> list[Episode]:
        """Sample and score one response per start."""
        prompts = [self.prompts[start.index] for start in starts]
        sampled = sampler(
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
        for episode, score in zip(episodes, self._score(episodes, prompts, sampled), strict=True):
            episode.score = episode.rewards[-1] = float(score)
        return episodes

    def _episode(self, start: Start, prompt: list[int], sampled: Sampled) -> Episode:
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

    def _score(
        self, episodes: list[Episode], prompts: list[list[int]], sampled: list[Sampled]
    ) -> np.ndarray[Any, np.dtype[np.float64]]:
        total = np.zeros(len(episodes))
        for module, weight in self.modules:
            scores = score_tokens(module, [episode.token_ids for episode in episodes])
            total += weight * scores
            for episode, score in zip(episodes, scores, strict=True):
                episode.components[type(module).__name__] = float(score)
        if self.functions is not None:
            scores_by_function = self.functions(
                [episode.prompt for episode in episodes],
                [episode.responses[0] for episode in episodes],
                completion_ids=[result.token_ids for result in sampled],
                **{name: [episode.columns[name] for episode in episodes] for name in self.columns[0]},
            )
            total += scores_by_function.total
            for name, values in scores_by_function.components.items():
                for episode, value in zip(episodes, values, strict=True):
                    episode.components[name] = float(value)
        return total


@torch.no_grad()
def score_tokens(module: Any, rows: Sequence[Sequence[int]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Score conversations with a sequence-classification model, read at each one's last token.

    Args:
        module: Has a trunk and a `score` layer, and shares the policy's tokenizer.
        rows: Token ids, without padding.
    """
    device = next(module.parameters()).device
    width = max(len(row) for row in rows)
    input_ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    last = torch.tensor([len(row) - 1 for row in rows], device=device)
    hidden = head.hidden_states(module, input_ids)[torch.arange(len(rows)), last]
    scores: np.ndarray[Any, np.dtype[np.float64]] = module.score(hidden).squeeze(-1).double().cpu().numpy()
    return scores


def _without_padding(row: Any, pad_token_id: int | None) -> list[int]:
    """Return a row's prompt. The attention mask says what is padding; without one, leading and trailing pads are."""
    ids = [int(token) for token in row["input_ids"]]
    if "attention_mask" in row:
        return [token for token, real in zip(ids, row["attention_mask"], strict=True) if real]
    while ids and ids[0] == pad_token_id:
        ids = ids[1:]
    while ids and ids[-1] == pad_token_id:
        ids = ids[:-1]
    return ids
