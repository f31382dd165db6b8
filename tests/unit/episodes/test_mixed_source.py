"""Several environments: shares by weight, each row once a pass, and the order of the plan; nothing is sampled here."""

import dataclasses
from collections import Counter

import pytest
from ppo_helpers import episode

from rlhf.episodes.mixed_source import MixedSource
from rlhf.episodes.plan import plan


class Played:
    """Stands for an environment's source; its episodes say which row was played."""

    def __init__(self, num_prompts=None):
        self.num_prompts, self.starts = num_prompts, []

    def collect(self, generator, starts, *, seed, iteration):
        self.starts += starts
        return [
            dataclasses.replace(episode([5], [3]), index=start.index, columns={"row": start.row}) for start in starts
        ]


def mixed(**weights):
    sources = {name: Played({"many": 10, "few": 3}.get(name)) for name in weights}
    return MixedSource(sources, weights), sources


def collect(source, iteration=0, episodes=12, samples=1, seed=0):
    starts = plan(source.num_prompts, episodes, samples, iteration, seed)
    return source.collect(None, starts, seed=seed, iteration=iteration)


@pytest.mark.parametrize("weights", [{"a": 1.0, "b": 1.0}, {"a": 3.0, "b": 1.0}, {"a": 5.0, "b": 2.0, "c": 1.0}])
def test_shares_are_those_of_the_weights_in_every_stretch(weights):
    source, _ = mixed(**weights)
    total = sum(weights.values())
    names = [source.names[source.turn(number).environment] for number in range(200)]
    for length in range(1, 200):
        counts = Counter(names[:length])
        for name, weight in weights.items():
            assert abs(counts[name] - length * weight / total) < 1.0


def test_whose_turn_it_is_does_not_depend_on_who_asks():
    """A process that plays every second episode, or a run that is resumed, deals as one that plays them all."""
    whole, resumed = mixed(a=3.0, b=1.0)[0], mixed(a=3.0, b=1.0)[0]
    assert resumed.turn(77) == [whole.turn(number) for number in range(78)][77]


def test_episodes_come_back_in_the_order_of_the_plan_with_their_environment():
    source, _ = mixed(many=2.0, few=1.0)
    episodes = collect(source)
    assert [each.index for each in episodes] == list(range(12))
    assert Counter(each.environment for each in episodes) == {"many": 8, "few": 4}


def test_every_row_comes_once_in_a_pass():
    source, _ = mixed(many=2.0, few=1.0)
    episodes = [each for iteration in range(5) for each in collect(source, iteration)]
    rows = [each.columns["row"] for each in episodes if each.environment == "few"]
    assert all(sorted(rows[first : first + 3]) == [0, 1, 2] for first in range(0, 18, 3))
    assert len({tuple(rows[first : first + 3]) for first in range(0, 18, 3)}) > 1


def test_samples_of_a_prompt_share_environment_and_row():
    source, _ = mixed(many=1.0, few=1.0)
    episodes = collect(source, episodes=12, samples=4)
    for first in range(0, 12, 4):
        group = episodes[first : first + 4]
        assert len({(each.index, each.environment, each.columns["row"]) for each in group}) == 1


def test_an_environment_without_rows_gets_its_seeds():
    source, sources = mixed(few=1.0, seeded=1.0)
    collect(source)
    assert {start.row for start in sources["seeded"].starts} == {None}
    assert len({start.seed for start in sources["seeded"].starts}) == 6


def test_an_environment_whose_turn_did_not_come_is_not_asked():
    source, sources = mixed(many=99.0, few=1.0)
    collect(source, episodes=2)
    assert sources["few"].starts == []
