"""Batch arithmetic: announced numbers are those that planning, cutting and updating arrive at, or the run stops."""

import dataclasses
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ppo_helpers import advantaged, make_ppo, prompts, random_episodes, tiny

import rlhf.ppo.trainer
from rlhf.config.ppo import PPOSectionConfig
from rlhf.episodes.plan import plan
from rlhf.packing.microbatch import partition
from rlhf.planning.arithmetic import BatchArithmetic, microbatch_bounds, minibatch_sizes, of_section
from rlhf.ppo.update import minibatch_rows

GIVEN = BatchArithmetic(
    iterations=5, responses=24, samples_per_prompt=4, processes=2, epochs=3, minibatches=4, microbatch_tokens=40,
    shortest=2, longest=20, num_prompts=10,
)  # fmt: skip


@dataclass
class Done:
    """What an update says it did."""

    steps: int
    microbatches: int


@dataclass
class Played:
    index: int
    sample_index: int


def test_the_numbers_by_hand():
    assert (GIVEN.prompts, GIVEN.process_responses, GIVEN.minibatch_responses) == (6, 12, 6)
    assert (GIVEN.iteration_steps, GIVEN.run_steps, GIVEN.passes) == (12, 60, 3.0)
    # 3 responses of each process: all in 40 tokens if they are short, two of 20 tokens and then one if they are long.
    assert GIVEN.microbatches == (1, 2)
    assert dataclasses.replace(GIVEN, microbatch_tokens=19).microbatches == (1, 3)
    assert dataclasses.replace(GIVEN, microbatch_tokens=3).microbatches == (3, 3)
    assert dataclasses.replace(GIVEN, longest=None).microbatches == (1, 3)
    assert dataclasses.replace(GIVEN, num_prompts=None).passes is None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(2, 30), min_size=1, max_size=24), st.integers(1, 90), st.integers(1, 3))
def test_the_cut_into_microbatches_stays_within_the_bounds(lengths: list[int], budget: int, world: int):
    fewest, most = microbatch_bounds(len(lengths), world, budget, min(lengths), max(lengths))
    for rank in range(world):
        assert fewest <= len(partition(lengths, range(len(lengths)), budget, rank, world)) <= most
    if min(lengths) == max(lengths):
        assert fewest == most
    assert microbatch_bounds(len(lengths), world, budget, 2, None)[0] <= fewest
    assert microbatch_bounds(len(lengths), world, budget, 2, None)[1] >= most


@pytest.mark.parametrize("minibatches", [1, 2, 3, 8])
@pytest.mark.parametrize("scored", [1, 2, 5, 7, 8, 16])
def test_steps_are_those_that_the_update_takes(scored: int, minibatches: int):
    parts = list(minibatch_rows(scored, 3, minibatches, seed=0))
    assert [len(rows) for rows in parts] == 3 * minibatch_sizes(scored, minibatches)
    numbers = dataclasses.replace(GIVEN, responses=16, minibatches=minibatches, epochs=3)
    assert numbers.steps(scored) == len(parts)


def test_prompts_and_responses_are_those_that_the_plan_plays():
    starts = plan(GIVEN.num_prompts, GIVEN.responses, GIVEN.samples_per_prompt, iteration=3, seed=0)
    assert len(starts) == GIVEN.responses
    assert len({(start.index, start.sample_index // GIVEN.samples_per_prompt) for start in starts}) == GIVEN.prompts


def test_processes_share_the_responses():
    section = PPOSectionConfig.model_validate({"episodes_per_iteration": 12, "minibatches": 4})
    shared = of_section(section, 3, num_prompts=9)
    assert (shared.processes, shared.process_responses, shared.process_minibatch_responses) == (3, 4, 1)


def test_one_turn_is_as_long_as_prompt_and_response_and_several_are_not_limited():
    rollout = {"max_prompt_tokens": 30, "max_response_tokens": 12}
    environments = {"rlhf/Prompts-v0": 8, "rlhf/Dialogue-v0": 8, "my/OneTurn-v0": 1}
    sections = [
        PPOSectionConfig.model_validate({"environment": {"id": name, "max_turns": turns}, "rollout": rollout})
        for name, turns in environments.items()
    ]
    assert [of_section(section, 1, None).longest for section in sections] == [42, None, 42]


def check(numbers=GIVEN, *, episodes=None, lengths=(9,) * 24, steps=12, microbatches=12):
    starts = [Played(*divmod(n, 4)) for n in range(24)] if episodes is None else episodes
    numbers.check(starts, list(lengths), Done(steps, microbatches) if steps is not None else None)


def test_what_was_announced_passes():
    check()
    check(microbatches=12, lengths=[2] * 24)
    check(lengths=[20] * 24, microbatches=24)
    check(lengths=[], steps=None)
    check(lengths=[9] * 3, steps=9, microbatches=9)  # of four minibatches three have a response


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"episodes": [Played(*divmod(n, 4)) for n in range(23)]}, "23 responses, where 24 were announced"),
        ({"episodes": [Played(n, 0) for n in range(24)]}, "24 prompts, where 6 were announced"),
        ({"lengths": [9] * 25}, "25 scored responses, where 0 to 24 were announced"),
        ({"lengths": [21] * 24}, "21 tokens of the longest conversation, where 2 to 20 were announced"),
        ({"steps": 11}, "11 optimizer steps, where 12 were announced"),
        ({"steps": 24}, "24 optimizer steps, where 12 were announced"),
        ({"lengths": [9] * 3}, "12 optimizer steps, where 9 were announced"),
        ({"microbatches": 11}, "11 microbatches of a process, where 12 were announced"),
        ({"lengths": [9] * 12 + [20] * 12, "microbatches": 25}, "25 microbatches .* 12 to 24 were announced"),
    ],
)
def test_what_was_not_announced_stops_the_run(wrong, message):
    with pytest.raises(AssertionError, match=message):
        check(**wrong)


def count(prompts, completions, completion_ids, **_):
    return [float(len(ids)) if ids[0] % 3 else None for ids in completion_ids]  # some responses have no score


def trainer(folder, **options):
    rows = [[3], [4, 5, 6], [5, 5], [6, 7, 3, 3], [7]]
    sizes = {"episodes_per_iteration": 12, "total_episodes": 36}
    parts = {"minibatches": 3, "samples_per_prompt": 2, "epochs": 2, "max_response_tokens": 6}
    given = {"reward": count, "dataset": prompts(rows), **sizes, **parts, **options}
    return make_ppo(tiny(), **given)


@pytest.mark.parametrize("budget", [7, 20, 1000])
def test_a_run_does_what_it_announces(tmp_path, budget):
    made = trainer(tmp_path, microbatch_tokens=budget)
    numbers, dropped = of_section(made.settings, 1, 5), 0
    for iteration in range(numbers.iterations):
        episodes = made.rollout(iteration)
        batch = advantaged(made, episodes)
        passed = []
        hook = made.actor_critic.register_forward_hook(lambda *_, passed=passed: passed.append(1))
        statistics = made.update(batch, iteration)
        hook.remove()
        dropped += numbers.responses - len(batch)
        numbers.check(episodes, batch.lengths.tolist(), Done(statistics.steps, len(passed)))
    assert dropped > 0


def test_the_trainer_stops_where_an_update_takes_another_number_of_steps(tmp_path, monkeypatch):
    genuine = rlhf.ppo.trainer.update

    def one_more(*arguments, **options):
        statistics = genuine(*arguments, **options)
        statistics.steps += 1
        return statistics

    made = trainer(tmp_path)
    made.train()
    assert made.progress.iteration == 3
    monkeypatch.setattr(rlhf.ppo.trainer, "update", one_more)
    with pytest.raises(AssertionError, match=r"7 optimizer steps, where 6 were announced"):
        trainer(tmp_path).train()


def test_the_trainer_stops_where_an_episode_is_missing(tmp_path):
    made = make_ppo(tiny(), episodes=random_episodes(4))
    made.rollout = lambda iteration: made.source.episodes[1:]
    with pytest.raises(AssertionError, match="3 responses, where 4 were announced"):
        made.train()


def test_the_trainer_counts_the_microbatches_of_the_update(tmp_path):
    made = trainer(tmp_path, microbatch_tokens=1, minibatches=1, reward=lambda completions, **_: [0.0] * 12)
    statistics = made.update(advantaged(made), 0)
    assert statistics.microbatches == 2 * 12  # one response each
    assert torch.tensor(statistics.steps) == 2
