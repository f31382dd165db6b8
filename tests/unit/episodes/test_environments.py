"""Environments as the configuration names them: limits of turns, held-out rows, and episodes that fail."""

import logging
import math

import gymnasium
import pytest
from ppo_helpers import ppo_section

from envs import Reply, TextEnv
from envs.base import Opening
from envs.errors import EpisodeError
from reward_models.chat import prepare_tokenizer
from rlhf.config.model import TokenizerConfig
from rlhf.episodes.environments import environment_source
from rlhf.episodes.plan import Start, plan
from rlhf.generation.generator import Sample
from rlhf.models.scratch import train_tokenizer

TOKENIZER = prepare_tokenizer(train_tokenizer(["a b c"] * 9, TokenizerConfig(vocab_size=290), 512))
A, EOS = TOKENIZER.encode("a", add_special_tokens=False)[0], TOKENIZER.eos_token_id


class Countdown(TextEnv):
    """Ends by itself behind `turns` responses, fails on some rows, and remembers which rows were played."""

    num_rows = 10
    played: list[int] = []  # noqa: RUF012
    failures: dict[int, int] = {}  # noqa: RUF012  # row -> how often it fails

    def __init__(self, turns=2):
        super().__init__()
        self.turns_left = self.turns_in_all = turns

    def open_row(self, index):
        self.index, self.turns_left = index, self.turns_in_all
        Countdown.played.append(index)
        return Opening("a b")

    def reply(self, response):
        if Countdown.failures.get(self.index, 0) > 0:
            Countdown.failures[self.index] -= 1
            raise OSError("the service is down")
        self.turns_left -= 1
        return Reply("c", reward=1.0, terminated=self.turns_left == 0)


class Speaker:
    """Says one letter and stops."""

    def generate(self, requests):
        return [Sample([A, EOS], [-1.0, -1.0], "eos") for _ in requests]


@pytest.fixture(autouse=True)
def countdown(monkeypatch):
    monkeypatch.setattr(Countdown, "played", [])
    monkeypatch.setattr(Countdown, "failures", {})
    gymnasium.register("test/Countdown-v0", Countdown)
    gymnasium.register("test/Short-v0", Countdown, max_episode_steps=2)
    yield
    del gymnasium.registry["test/Countdown-v0"], gymnasium.registry["test/Short-v0"]


def source(count=4, *, id="test/Countdown-v0", kwargs=None, part="training", held_out_fraction=0.0, **environment):
    section = ppo_section(environment={"id": id, "kwargs": kwargs or {}, **environment})
    return environment_source(
        section.environment, section.rollout, TOKENIZER, None, prompts=None, count=count, max_positions=None,
        part=part, held_out_fraction=held_out_fraction,
    )  # fmt: skip


def collect(made, *rows):
    return made.collect(Speaker(), [Start(row, 0, 0) for row in rows or range(4)], seed=0, iteration=0)


@pytest.mark.parametrize(
    ("id", "turns", "max_turns", "expected"),
    [
        ("test/Countdown-v0", 2, 8, (2, True, False)),
        ("test/Countdown-v0", 2, 2, (2, True, False)),  # ends by itself on the last turn that it may have
        ("test/Countdown-v0", 3, 2, (2, False, True)),
        ("test/Short-v0", 3, 8, (2, False, True)),  # the environment's own limit is the smaller one
        ("test/Short-v0", 3, 1, (1, False, True)),  # the configuration's is
        ("test/Short-v0", 2, 8, (2, True, False)),
    ],
)
def test_the_smaller_limit_of_turns_cuts_off_and_an_end_is_no_cut(id, turns, max_turns, expected):
    for episode in collect(source(id=id, kwargs={"turns": turns}, max_turns=max_turns)):
        assert (len(episode.responses), episode.terminated, episode.truncated) == expected
        assert episode.score == expected[0]


def test_training_never_plays_a_held_out_row_and_evaluation_nothing_else():
    training, held_out = source(held_out_fraction=0.3), source(part="held_out", held_out_fraction=0.3)
    assert (training.num_prompts, held_out.num_prompts) == (7, 3)
    for iteration in range(4):
        training.collect(Speaker(), plan(7, 8, 1, iteration, 0), seed=0, iteration=iteration)
    trained = set(Countdown.played)
    Countdown.played.clear()
    collect(held_out, 0, 1, 2)
    assert len(trained) == 7
    assert set(Countdown.played) == set(range(10)) - trained


def test_a_single_row_is_trained_on_and_evaluated(monkeypatch):
    monkeypatch.setattr(Countdown, "num_rows", 1)
    assert source(part="held_out", held_out_fraction=0.3).num_prompts == 1


def test_a_failed_episode_is_left_out_and_the_others_stay(caplog):
    Countdown.failures[2] = 1
    with caplog.at_level(logging.WARNING):
        episodes = collect(source())
    assert [episode.failure is None for episode in episodes] == [True, True, False, True]
    assert math.isnan(episodes[2].score)
    assert "Countdown-v0 failed in step 1, given the response 'a', of the episode with row 2" in episodes[2].failure
    assert "OSError: the service is down" in episodes[2].failure
    assert [episode.score for episode in episodes if episode.failure is None] == [2.0] * 3
    assert caplog.messages[0].startswith("1 of 4 episodes failed in their environment and are left out.")


def test_retry_plays_a_failed_episode_once_more():
    Countdown.failures.update({0: 1, 1: 2})
    episodes = collect(source(on_error="retry"))
    assert [episode.failure is None for episode in episodes] == [True, False, True, True]
    assert episodes[0].score == 2.0
    assert (Countdown.played.count(1), Countdown.played.count(2)) == (2, 1)


def test_raise_ends_the_run_at_once():
    Countdown.failures[3] = 1
    with pytest.raises(EpisodeError, match="row 3"):
        collect(source(on_error="raise"))


def test_a_run_in_which_most_episodes_fail_ends():
    Countdown.failures.update({0: 1, 1: 1})
    collect(source())  # half of them
    Countdown.failures.update({0: 1, 1: 1, 2: 1})
    with pytest.raises(EpisodeError, match=r"3 of 4 episodes failed in their environment.*row 0.*`rlhf envs check ID`"):
        collect(source())


def test_a_reset_that_fails_costs_its_episode(monkeypatch):
    def open_row(self, index):
        if index == 1:
            raise KeyError("row")
        return Opening("a b")

    monkeypatch.setattr(Countdown, "open_row", open_row)
    monkeypatch.setattr(Countdown, "index", 0, raising=False)
    episodes = collect(source())
    assert (episodes[1].token_ids, episodes[1].responses, episodes[1].truncated) == ([], [], True)
    assert "failed in reset" in episodes[1].failure
    assert episodes[0].failure is None
