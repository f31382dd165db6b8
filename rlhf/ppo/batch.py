"""How a rollout is laid out in tensors, and how it is cut into microbatches.

Notation: B episodes, L tokens of the longest conversation, T response tokens of the episode with the most. Per-token
quantities live on the T axis: response tokens only, in order, several turns one behind the other, padded on the right.
Every process holds the whole batch; each runs its own share of the rows through the models.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.episodes.episode import Episode
from rlhf.packing.packed import PackedRows


@dataclass
class Batch:
    """A rollout in tensors. What the models and estimators add is filled in step by step."""

    input_ids: Tensor  # (B, L) right-padded conversations
    lengths: Tensor  # (B,) tokens of each conversation
    positions: Tensor  # (B, T) where in its conversation each response token stands
    mask: Tensor  # (B, T) True where there is a response token
    sampled_logprobs: Tensor  # (B, T) the sampler's
    env_rewards: Tensor  # (B, T) the environment's rewards, on the last token of each turn
    stopped: Tensor  # (B,) True where the last response ended by itself
    truncated: Tensor  # (B,) True where the episode was cut off rather than ended
    groups: Tensor  # (B,) episodes of the same prompt share a number
    logprobs: Tensor  # (B, T) the policy's, before the update
    ref_logprobs: Tensor  # (B, T) the reference policy's
    values: Tensor  # (B, T) the critic's V(s_t), before the update
    final_values: Tensor  # (B,) V of the state behind the last token
    kl: Tensor  # (B, T) logprobs - ref_logprobs
    rewards: Tensor  # (B, T) env_rewards minus the KL penalty
    advantages: Tensor  # (B, T)
    returns: Tensor  # (B, T) what the critic should have said

    def __len__(self) -> int:
        return len(self.input_ids)


@dataclass(frozen=True)
class Microbatch:
    """The rows of one forward and backward pass, and where their t response tokens stand among their n tokens."""

    rows: Tensor  # (b,) rows of the batch
    tokens: PackedRows  # the n tokens of these rows, shared beginnings once
    predictors: Tensor  # (t,) the token whose hidden state predicts each response token
    last: Tensor  # (b,) each row's last token
    targets: Tensor  # (t,) the response tokens
    counts: bool  # False for a filler that only keeps processes in step: its loss is multiplied by 0


def collate(episodes: Sequence[Episode], dtype: torch.dtype, device: torch.device) -> Batch:
    """Lay episodes out in tensors; what is not known yet is zero."""
    length = max(len(episode.token_ids) for episode in episodes)
    width = max(episode.response_length for episode in episodes)
    shape = (len(episodes), width)
    input_ids = torch.zeros(len(episodes), length, dtype=torch.long)
    positions, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    sampled, rewards = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64)
    for row, episode in enumerate(episodes):
        input_ids[row, : len(episode.token_ids)] = torch.tensor(episode.token_ids)
        where = torch.tensor(episode.response_mask).nonzero().squeeze(-1)
        positions[row, : len(where)], mask[row, : len(where)] = where, True
        sampled[row, : len(where)] = torch.tensor(episode.sampled_logprobs, dtype=torch.float64)[where]
        rewards[row, : len(where)] = torch.tensor(episode.rewards, dtype=torch.float64)[where]
    zeros = torch.zeros(shape, dtype=dtype, device=device)
    return Batch(
        input_ids=input_ids.to(device),
        lengths=torch.tensor([len(episode.token_ids) for episode in episodes], device=device),
        positions=positions.to(device),
        mask=mask.to(device),
        sampled_logprobs=sampled.to(device, dtype),
        env_rewards=rewards.to(device, dtype),
        stopped=torch.tensor([episode.stop_reason != "length" for episode in episodes], device=device),
        truncated=torch.tensor([episode.truncated for episode in episodes], device=device),
        groups=torch.tensor([episode.index for episode in episodes], device=device),
        logprobs=zeros,
        ref_logprobs=zeros.clone(),
        values=zeros.clone(),
        final_values=zeros.new_zeros(len(episodes)),
        kl=zeros.clone(),
        rewards=zeros.clone(),
        advantages=zeros.clone(),
        returns=zeros.clone(),
    )


def partition(lengths: Sequence[int], rows: Sequence[int], budget: int, rank: int, world: int) -> list[list[int]]:
    """Cut rows into microbatches of at most `budget` padded tokens, for one of `world` processes.

    Rows are sorted by length, so that a microbatch has little padding, and dealt out in turn, so that processes have
    equal work. Every process gets the same number of microbatches; a short one gets empty ones at its end.

    Args:
        lengths: (B,) tokens of each row of the batch.
        rows: The rows to cut.
        budget: Tokens of one microbatch, padding included; a longer row gets a microbatch of its own.
        rank: Which share to return.
        world: Number of processes.
    """
    ordered = sorted(rows, key=lambda row: (-lengths[row], row))
    shares = [_fill(lengths, ordered[start::world], budget) for start in range(world)]
    most = max(len(share) for share in shares)
    return shares[rank] + [[] for _ in range(most - len(shares[rank]))]


def _fill(lengths: Sequence[int], ordered: Sequence[int], budget: int) -> list[list[int]]:
    filled: list[list[int]] = []
    for row in ordered:
        # The first row is the longest: it sets the width of its microbatch.
        if filled and (len(filled[-1]) + 1) * lengths[filled[-1][0]] <= budget:
            filled[-1].append(row)
        else:
            filled.append([row])
    return filled


def microbatches(batch: Batch, rows: Sequence[int], budget: int, rank: int = 0, world: int = 1) -> Iterator[Microbatch]:
    """Yield this process's microbatches of the given rows; see `partition`."""
    for part in partition(batch.lengths.tolist(), rows, budget, rank, world):
        yield _microbatch(batch, part or [int(batch.lengths.argmin())], counts=bool(part))


def _microbatch(batch: Batch, part: list[int], counts: bool) -> Microbatch:
    rows = torch.tensor(part, device=batch.input_ids.device)
    tokens = PackedRows.from_padded(batch.input_ids[rows], batch.lengths[rows])
    mask = batch.mask[rows]
    row, place = mask.nonzero()[:, 0], batch.positions[rows][mask]  # of each response token, (t,)
    return Microbatch(
        rows=rows,
        tokens=tokens,
        predictors=tokens.grid[row, place - 1],  # the state before a token predicts it
        last=tokens.last,
        targets=batch.input_ids[rows][row, place],
        counts=counts,
    )
