"""The cut into microbatches holds its budget and deals rows out fairly, and groups stay whole."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ppo_helpers import episode, random_episodes

from rlhf.packing.microbatch import microbatches, partition
from rlhf.ppo.batch import collate
from rlhf.ppo.scoring import whole_groups


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=20),
    budget=st.integers(1, 120),
    world=st.integers(1, 4),
)
def test_every_row_once_within_the_budget_and_processes_in_step(lengths, budget, world):
    shares = [partition(lengths, range(len(lengths)), budget, rank, world) for rank in range(world)]
    assert sorted(row for share in shares for part in share for row in part) == list(range(len(lengths)))
    assert len({len(share) for share in shares}) == 1
    for part in (part for share in shares for part in share if len(part) > 1):
        assert len(part) * max(lengths[row] for row in part) <= budget
    counts = [sum(len(part) for part in share) for share in shares]
    assert max(counts) - min(counts) <= 1
    assert not any(part and not before for share in shares for before, part in pairwise(share))


def test_a_budget_is_used():
    """Eight rows of 5 tokens: two in 10, three in 19, all in 40."""
    for budget, sizes in ((9, [1] * 8), (10, [2] * 4), (19, [3, 3, 2]), (40, [8])):
        assert [len(part) for part in partition([5] * 8, range(8), budget, 0, 1)] == sizes


@pytest.mark.parametrize("budget", [1, 14, 10**6])
def test_a_microbatch_holds_its_rows_and_reads_its_own_tokens(budget):
    episodes = random_episodes(9)
    batch = collate(episodes, torch.float64, torch.device("cpu"))
    for part in microbatches(batch, range(9), budget):
        rows = [episodes[row].token_ids for row in part.rows.tolist()]
        masks = [episodes[row].response_mask for row in part.rows.tolist()]
        assert part.tokens.lengths.tolist() == [len(row) for row in rows]
        said = [
            tuple(row[: at + 1]) for row, mask in zip(rows, masks, strict=True) for at in range(len(row)) if mask[at]
        ]
        beginning = {
            token: tuple(row[: at + 1])
            for row, tokens in zip(rows, part.tokens.grid.tolist(), strict=True)
            for at, token in enumerate(tokens[: len(row)])
        }
        assert part.targets.tolist() == [tokens[-1] for tokens in said]
        assert [beginning[token] for token in part.predictors.tolist()] == [tokens[:-1] for tokens in said]
        assert [beginning[token] for token in part.last.tolist()] == [tuple(row) for row in rows]


def test_a_group_that_lost_a_sample_is_left_out_as_a_whole():
    """Three samples of each prompt, of which one was not scored: two would have another baseline than the rest."""
    episodes = [episode([3], [4], float(n), index=n // 3) for n in range(9) if n != 4]
    assert [e.score for e in whole_groups(episodes, 3)] == [0, 1, 2, 6, 7, 8]


def test_a_prompt_that_came_twice_has_two_groups_worth_of_samples():
    episodes = [episode([3], [4], float(n), index=0) for n in range(4)]
    assert whole_groups(episodes, 2) == episodes
