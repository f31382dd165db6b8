"""Which prompts an iteration plays: permutations, data sets smaller than an iteration, several samples of a prompt."""

from collections import Counter

import pytest

from rlhf.episodes.plan import plan


def indices(iteration, *, prompts=10, episodes=5, samples=1, seed=0):
    return [start.index for start in plan(prompts, episodes, samples, iteration, seed)]


def test_an_epoch_is_a_permutation_and_the_next_one_another():
    epochs = [indices(2 * epoch) + indices(2 * epoch + 1) for epoch in range(4)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert epochs[0] != list(range(10))


def test_the_plan_depends_on_its_arguments_alone():
    assert plan(10, 6, 2, 3, 7) == plan(10, 6, 2, 3, 7)
    assert indices(0, seed=1) != indices(0, seed=2)


def test_an_iteration_goes_on_into_the_next_epoch():
    """7 prompts, 5 an iteration: over 7 iterations each prompt comes exactly 5 times, once in every epoch."""
    played = [index for iteration in range(7) for index in indices(iteration, prompts=7)]
    assert all(sorted(played[first : first + 7]) == list(range(7)) for first in range(0, 35, 7))


@pytest.mark.parametrize(("prompts", "episodes", "samples"), [(3, 8, 1), (1, 8, 1), (3, 16, 2), (2, 12, 4)])
def test_oracle_28_a_small_data_set_is_used_several_times_with_new_samples(prompts, episodes, samples):
    starts = plan(prompts, episodes, samples, 2, 0)
    assert len(starts) == episodes
    counts = Counter(start.index for start in starts)
    assert max(counts.values()) - min(counts.values()) <= samples
    for index, count in counts.items():
        assert sorted(start.sample_index for start in starts if start.index == index) == list(range(count))


def test_samples_of_a_prompt_stand_together_and_are_numbered():
    starts = plan(10, 6, 3, 0, 0)
    assert [start.sample_index for start in starts] == [0, 1, 2, 0, 1, 2]
    assert starts[0].index == starts[1].index == starts[2].index != starts[3].index
    assert starts[0].seed == starts[1].seed == starts[2].seed != starts[3].seed


def test_an_environment_without_numbered_prompts_gets_seeds():
    starts = [start for iteration in range(3) for start in plan(None, 4, 1, iteration, 5)]
    assert [start.index for start in starts] == list(range(12))
    assert len({start.seed for start in starts}) == 12
    assert {start.seed for start in plan(None, 4, 1, 0, 6)}.isdisjoint(start.seed for start in starts)
