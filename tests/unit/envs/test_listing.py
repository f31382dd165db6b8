"""Which environments are listed: those that speak text, with turns and reward source; nothing that cannot be used."""

import warnings

import gymnasium
import pytest
from gymnasium.spaces import Discrete, Text

from envs import TextEnv, list_envs, make_text_env
from envs.base import Opening, Reply
from envs.listing import describe_envs


class Echo(gymnasium.Env):
    """Says what it heard.

    More about it.
    """

    observation_space = Text(100)
    action_space = Text(100)


class Numbers(gymnasium.Env):
    """A game of numbers."""

    observation_space = Discrete(3)
    action_space = Discrete(3)


class Late(gymnasium.Env):
    """Says only when it is made what it speaks."""

    made = 0

    def __init__(self, space=None) -> None:
        print("noise of a foreign library")
        warnings.warn("and a warning", stacklevel=1)
        Late.made += 1
        self.observation_space = Text(9)
        self.action_space = space or Text(9)


class Riddle(TextEnv):
    """Asks, and judges the answer."""

    turns = "several"
    reward_source = "environment"

    def __init__(self, riddles) -> None:  # cannot be made without arguments
        super().__init__()
        self.riddles = riddles

    @property
    def num_rows(self) -> int:
        return len(self.riddles)

    def open_row(self, index: int) -> Opening:
        return Opening(self.riddles[index])

    def reply(self, response: str) -> Reply:
        return Reply(None, 1.0, terminated=True)


class Wrong(Echo):
    """Declares what is not allowed."""

    turns = 3
    reward_source = "heaven"


def broken():
    raise RuntimeError("no licence")


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch):
    """Registers a foreign environment for one test."""
    monkeypatch.setattr("gymnasium.envs.registration.registry", registry := dict(gymnasium.registry))
    monkeypatch.setattr(gymnasium, "registry", registry)
    return lambda id, entry_point, **options: gymnasium.register(id, entry_point=entry_point, **options)


def listed() -> dict:
    return {entry.id: entry for entry in list_envs()}


def test_only_text_environments_are_listed():
    """Gymnasium registers Ant-v2 and 18 more that only tell how to install something else."""
    assert "Ant-v2" in gymnasium.registry
    assert "CartPole-v1" in gymnasium.registry
    assert all(id.startswith("rlhf/") for id in listed())
    assert {"rlhf/Dialogue-v0", "rlhf/Prompts-v0", "rlhf/ProbeCopy-v0"} <= set(listed())


def test_the_projects_own_say_turns_and_reward_source():
    found = listed()
    dialogue, prompts = found["rlhf/Dialogue-v0"], found["rlhf/Prompts-v0"]
    assert (dialogue.turns, dialogue.reward_source, dialogue.ours) == ("several", "environment", True)
    assert (prompts.turns, prompts.reward_source, prompts.ours) == ("one", "components", True)
    assert prompts.summary.startswith("One response to one prompt")


@pytest.mark.parametrize("id", ["rlhf/Dialogue-v0", "rlhf/Prompts-v0"])
def test_what_is_declared_is_what_happens(id: str):
    entry, env = listed()[id], make_text_env(id)
    env.reset(seed=0)
    _, reward, terminated, truncated, _ = env.step("I cannot say.")
    assert (entry.turns == "one") == (terminated or truncated)
    assert (entry.reward_source == "components") == (reward == 0.0)


def test_a_foreign_environment_is_judged_by_its_class(register):
    register("plugin/Echo-v0", Echo)
    register("plugin/Numbers-v0", Numbers)
    register("plugin/Riddle-v0", Riddle)
    found = listed()
    assert "plugin/Numbers-v0" not in found
    echo, riddle = found["plugin/Echo-v0"], found["plugin/Riddle-v0"]
    assert (echo.summary, echo.ours, echo.turns, echo.reward_source) == ("Says what it heard.", False, None, None)
    assert (riddle.turns, riddle.reward_source) == ("several", "environment")
    assert list(found) == sorted(found)


def test_one_that_does_not_say_is_made_once_and_quietly(register, capfd: pytest.CaptureFixture):
    Late.made = 0
    register("plugin/Late-v0", Late)
    register("plugin/LateNumbers-v0", Late, kwargs={"space": Discrete(2)})
    found = listed()
    assert "plugin/Late-v0" in found
    assert "plugin/LateNumbers-v0" not in found
    assert Late.made == 2
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_imported_or_made_is_left_out(register):
    register("plugin/Gone-v0", "no_such_module:Env")
    register("plugin/Broken-v0", broken)
    assert not [id for id in listed() if id.startswith("plugin/")]


def test_an_end_after_one_step_means_one_turn_and_nonsense_is_not_taken_over(register):
    register("plugin/Wrong-v0", Wrong)
    register("plugin/Short-v0", Echo, max_episode_steps=1)
    found = listed()
    assert (found["plugin/Wrong-v0"].turns, found["plugin/Wrong-v0"].reward_source) == (None, None)
    assert found["plugin/Short-v0"].turns == "one"


def test_the_text_is_grouped(register):
    assert "none is registered" in describe_envs()
    register("plugin/Echo-v0", Echo)
    ours, others = describe_envs().split("Of others:\n")
    assert "rlhf/Dialogue-v0  (several turns, rewards of its own)\n      Several turns with a scripted" in ours
    assert "rlhf/Prompts-v0  (one turn, rewards by reward functions and models)" in ours
    assert others.splitlines() == [
        "  plugin/Echo-v0  (turns not declared, rewards not declared)",
        "      Says what it heard.",
    ]
