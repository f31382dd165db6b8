"""Environments that fail: what the error says, what the episode costs, and that the others go on."""

import math
import threading

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Text

from envs import Reply, TextEnv, TextEnvError, TextVectorEnv
from envs.base import Opening
from envs.errors import EpisodeError


class Sums(TextEnv):
    """Does what the response says."""

    num_rows = 5

    def open_row(self, index):
        if index == 4:
            raise RuntimeError("no such row in the database")
        return Opening(f"question {index}", columns={"index": index})

    def reply(self, response):
        if response == "raise":
            raise ZeroDivisionError("division by zero")
        if response == "hang":
            threading.Event().wait(30)
        return None if response == "none" else Reply("and?", reward=1.0)


class Old(gymnasium.Env):
    """Returns what it was made with."""

    observation_space, action_space = Text(50), Text(50)

    def __init__(self, result, begin=("question", {})):
        self.result, self.begin = result, begin

    def reset(self, *, seed=None, options=None):
        return self.begin

    def step(self, action):
        return self.result


def sums(n=3, **options):
    env = TextVectorEnv([Sums for _ in range(n)], **options)
    env.reset(options=[{"index": i} for i in range(n)], seed=7)
    return env


def test_a_failing_step_names_environment_row_and_response():
    env = sums()
    with pytest.raises(
        EpisodeError,
        match=r"Sums failed in step 1, given the response 'raise', of the episode with row 1: ZeroDivision",
    ) as caught:
        env.step(["a", "raise", "b"])
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_failing_reset_names_the_row_or_the_seed():
    env = TextVectorEnv([Sums])
    with pytest.raises(
        EpisodeError, match=r"Sums failed in reset of the episode with row 4: RuntimeError: no such row"
    ):
        env.reset(options={"index": 4})
    broken = TextVectorEnv([Old(None, begin="question")])
    with pytest.raises(EpisodeError, match=r"Old failed in reset of the episode with seed 11: .* returned str"):
        broken.reset(seed=[11])


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (None, "step of Old returned NoneType; it must return"),
        (("a", 1.0, True, {}), "returned a tuple of 4; .*part 'done' into terminated and truncated"),
        ((np.zeros(3), 1.0, True, False, {}), r"observation of type ndarray of shape \(3,\)"),
        (("a", np.ones(1), True, False, {}), r"reward of type ndarray of shape \(1,\); it must be one finite number"),
        (("a", None, True, False, {}), "reward of type NoneType"),
        (("a", math.inf, True, False, {}), "the reward inf"),
        (("a", 1.0, None, False, {}), "terminated of type NoneType; it must be True or False"),
        (("a", 1.0, True, False, None), "info of type NoneType"),
    ],
)
def test_wrong_answers_are_said_in_words(result, message):
    env = TextVectorEnv([Old(result)])
    env.reset(seed=0)
    with pytest.raises(EpisodeError, match=message):
        env.step(["hello"])


def test_numbers_of_numpy_and_flags_of_numpy_are_right():
    env = TextVectorEnv([Old(("a", np.float32(0.5), np.True_, np.False_, {}))])
    env.reset(seed=0)
    _, rewards, terminated, _, _ = env.step(["hello"])
    assert (rewards.tolist(), terminated.tolist()) == ([0.5], [True])


def test_a_text_environment_must_reply():
    env = sums()
    with pytest.raises(EpisodeError, match=r"Sums.reply returned NoneType; it must return envs.Reply"):
        env.step(["none", None, None])


def test_a_dropped_episode_is_over_and_the_others_go_on():
    env = sums(on_error="drop")
    env.step(["a", "b", "c"])
    _, rewards, terminated, truncated, infos = env.step(["a", "raise", "c"])
    assert (rewards[0], rewards[2]) == (1.0, 1.0)
    assert math.isnan(rewards[1])
    assert (terminated.tolist(), truncated.tolist()) == ([False] * 3, [False, True, False])
    assert "step 2" in infos[1]["failure"]
    assert (infos[1]["scored"], infos[1]["columns"]) == (False, {"index": 1})
    assert [message["content"] for message in infos[1]["messages"]] == ["question 1", "b", "and?"]
    assert "failure" not in infos[0]
    with pytest.raises(TextEnvError, match="has ended"):
        env.step(["a", "again", "c"])
    env.step(["a", None, "c"])
    env.reset(options={"index": 0})
    assert env.step(["a", "b", "c"])[1].tolist() == [1.0] * 3


def test_dropped_episodes_are_not_scored():
    class Scorer:
        def __call__(self, prompts, completions, **columns):
            raise AssertionError("nothing ended but the failed episode")

    env = sums(on_error="drop", scorer=Scorer())
    assert math.isnan(env.step(["raise", None, None])[1][0])


def test_a_dropped_reset_leaves_the_others():
    env = TextVectorEnv([Sums, Sums], on_error="drop")
    _, infos = env.reset(options=[{"index": 4}, {"index": 0}])
    assert "no such row" in infos[0]["failure"]
    assert infos[0]["messages"] == []
    assert env.step([None, "a"])[1].tolist() == [0.0, 1.0]


def test_a_failed_environment_is_made_anew():
    env = sums(on_error="drop")
    before = list(env.envs)
    env.step(["a", "raise", "c"])
    assert [one is other for one, other in zip(before, env.envs, strict=True)] == [True, False, True]


def test_a_hanging_step_costs_its_episode():
    env = sums(on_error="drop", timeout_seconds=0.2, workers=3)
    _, rewards, _, truncated, infos = env.step(["a", "hang", "c"])
    assert truncated.tolist() == [False, True, False]
    assert "TimeoutError: no answer within 0.2 seconds" in infos[1]["failure"]
    assert (rewards[0], rewards[2]) == (1.0, 1.0)


def test_a_timeout_needs_environments_that_can_be_made_anew():
    with pytest.raises(TextEnvError, match="give functions that make them"):
        TextVectorEnv([Sums()], timeout_seconds=1.0)


def test_environments_wait_together():
    """With as many workers as environments all are in their step at once: each waits until the others are there."""
    meeting = threading.Barrier(3, timeout=20)

    class Meeting(Sums):
        num_rows = 4

        def reply(self, response):
            meeting.wait()
            return Reply("and?", reward=1.0)

    env = TextVectorEnv([Meeting] * 3, workers=3)
    env.reset(seed=0)
    assert env.step(["a", "b", "c"])[1].tolist() == [1.0] * 3


def test_the_number_of_workers_changes_nothing():
    class Dice(Sums):
        num_rows = 4

        def reply(self, response):
            return Reply(str(self.np_random.integers(1000)), reward=float(self.np_random.random()))

    def play(workers):
        env = TextVectorEnv([Dice] * 8, workers=workers)
        env.reset(seed=3)
        return [(step[0], step[1].tolist()) for step in (env.step(["x"] * 8) for _ in range(3))]

    assert play(1) == play(5)
