"""Probes: what each response earns, by hand, and what the first policy is shown."""

import numpy as np
import pytest

from envs import list_envs, make_text_env
from envs.tasks.probes import BEST, BY_CHANCE, LETTERS, babble, naming

PROBES = [env.id for env in list_envs() if env.id.startswith("rlhf/Probe")]


def play(id, respond, row=0, seed=0):
    """The rewards of an episode, and what was said to the policy."""
    env = make_text_env(id)
    observation, _ = env.reset(seed=seed, options={"index": row})
    heard, rewards, over = [observation], [], False
    while not over:
        observation, reward, over, _, _ = env.step(respond(heard))
        heard.append(observation)
        rewards.append(reward)
    return rewards, heard


def test_there_are_five():
    assert len(PROBES) == 5


@pytest.mark.parametrize(
    ("said", "reward"), [("a", 1.0), (" a", 1.0), ("abc", 1.0), ("b", 0.0), ("", 0.0), ("ba", 0.0)]
)
def test_one_token(said, reward):
    assert play("rlhf/ProbeToken-v0", lambda heard: said) == ([reward], ["Say it.", ""])


@pytest.mark.parametrize("row", range(4))
def test_copy(row):
    rewards = [play("rlhf/ProbeCopy-v0", lambda heard, said=said: said, row)[0] for said in LETTERS]
    assert rewards == [[float(number == row)] for number in range(4)]


def test_two_turns_are_paid_one_by_one():
    rewards, heard = play("rlhf/ProbeTwoTurns-v0", lambda heard: "b", row=1)
    assert (rewards, heard) == ([0.5, 0.5], ["b b b b", "Again.", ""])
    assert play("rlhf/ProbeTwoTurns-v0", lambda heard: "b" if len(heard) == 1 else "c", row=1)[0] == [0.5, 0.0]


def test_delay_pays_at_the_end_for_the_beginning():
    assert play("rlhf/ProbeDelay-v0", lambda heard: "a" if len(heard) == 1 else "d")[0] == [0.0, 0.0, 1.0]
    assert play("rlhf/ProbeDelay-v0", lambda heard: "d" if len(heard) == 1 else "a")[0] == [0.0, 0.0, 0.0]


def test_noise_has_mean_0_and_standard_deviation_1():
    noise = [play("rlhf/ProbeNoise-v0", lambda heard: "b", seed=seed)[0][0] for seed in range(400)]
    assert set(noise) == {-1.0, 1.0}
    assert abs(np.mean(noise)) < 0.15
    paid = [play("rlhf/ProbeNoise-v0", lambda heard: "a", seed=seed)[0][0] for seed in range(400)]
    assert np.mean(paid) - np.mean(noise) == pytest.approx(1.0)


@pytest.mark.parametrize("id", [id for id in PROBES if id != "rlhf/ProbeNoise-v0"])
def test_the_best_policy_and_chance_earn_what_is_said(id):
    def best(heard):
        return heard[0][0] if heard[0] != "Say it." else "a"

    rows = make_text_env(id).unwrapped.num_rows
    assert [sum(play(id, best, row)[0]) for row in range(rows)] == [BEST] * rows
    rng = np.random.default_rng(0)
    scores = [sum(play(id, lambda heard: str(rng.choice([*LETTERS])), i % rows)[0]) for i in range(800)]
    assert np.mean(scores) == pytest.approx(BY_CHANCE, abs=0.06)


def test_the_first_policy_says_every_letter_equally_often_in_every_situation():
    rows = babble(2000)
    last = [(row["messages"][-2]["content"], row["messages"][-1]["content"]) for row in rows]
    assert {asked for asked, _ in last} == {"Say it.", "Again.", "Go on.", *map(naming, LETTERS)}
    for letter in LETTERS:
        assert np.mean([said == letter for _, said in last]) == pytest.approx(0.25, abs=0.04)
    assert babble(5) == babble(5)
