"""Environments of third parties with plain text spaces get their conversation written into info."""

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Text
from gymnasium.wrappers import TimeLimit

from envs import TextEnvError
from envs.conversation import Conversation, with_conversation
from envs.tasks.prompts import PromptsEnv


class Parrot(gymnasium.Env):
    """Says what it is told to say and ends when that is used up; infos as given."""

    observation_space = Text(100, min_length=0)
    action_space = Text(100)

    def __init__(self, lines=("open", "again", ""), infos=({}, {}, {})):
        self.lines, self.infos = lines, infos

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.turn = 0
        return self.lines[0], dict(self.infos[0])

    def step(self, action):
        self.turn += 1
        ended = self.turn == len(self.lines) - 1
        return self.lines[self.turn], 0.5, ended, False, dict(self.infos[self.turn])


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_messages_are_built_from_observations_and_actions():
    env = Conversation(Parrot())
    observation, info = env.reset(seed=0)
    assert observation == "open"
    assert info == {"columns": {}, "messages": [user("open")], "prompt": [user("open")]}
    _, reward, terminated, _, info = env.step("one")
    assert (reward, terminated) == (0.5, False)
    assert info["messages"] == [user("open"), assistant("one"), user("again")]
    assert info["prompt"] == [user("open")]
    _, _, terminated, _, info = env.step("two")
    assert terminated
    assert info["messages"][-1] == assistant("two")


def test_an_empty_observation_within_an_episode_is_a_message():
    env = Conversation(Parrot(lines=("open", "", "end")))
    env.reset()
    assert env.step("one")[4]["messages"][-1] == user("")
    assert env.step("two")[4]["messages"][-1] == user("end")


def test_a_reset_forgets():
    env = Conversation(Parrot())
    env.reset()
    env.step("one")
    assert env.reset()[1]["messages"] == [user("open")]


def test_what_the_environment_gives_itself_stays():
    own = [{"role": "system", "content": "s"}, user("open")]
    longer = [*own, assistant("one"), user("x"), user("y")]
    infos = (
        {"prompt": "raw", "messages": own, "columns": {"a": 1}, "extra": 3},
        {"messages": longer, "columns": {"a": 2}},
        {},
    )
    env = Conversation(Parrot(infos=infos))
    assert env.reset()[1] == {"prompt": "raw", "messages": own, "columns": {"a": 1}, "extra": 3}
    assert env.step("one")[4] == {"prompt": "raw", "messages": longer, "columns": {"a": 2}}
    assert env.step("two")[4]["messages"] == [*longer, assistant("two")]


def test_infos_are_copies():
    env = Conversation(Parrot())
    _, info = env.reset()
    info["messages"][0]["content"] = info["prompt"][0]["content"] = "changed"
    assert env.step("one")[4]["messages"][0] == env.step("two")[4]["prompt"][0] == user("open")


def test_only_environments_that_need_it_are_wrapped_and_once():
    ours = TimeLimit(PromptsEnv(), 3)
    assert with_conversation(ours) is ours
    wrapped = with_conversation(Parrot())
    assert isinstance(wrapped, Conversation)
    outer = TimeLimit(wrapped, 3)
    assert with_conversation(outer) is outer


def test_numpy_strings_become_strings():
    assert type(Conversation(Parrot(lines=(np.str_("open"), ""))).reset()[0]) is str


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (Parrot(lines=(3, "")), "observation of type int"),
        (Parrot(infos=({"messages": []}, {})), r"info\['messages'\] that is no conversation"),
        (Parrot(infos=({"messages": [{"role": "user"}]}, {})), r"info\['messages'\] that is no conversation"),
    ],
)
def test_what_is_no_text_is_refused(env, message):
    with pytest.raises(TextEnvError, match=message):
        Conversation(env).reset()


def test_own_messages_must_hold_the_response():
    env = Conversation(Parrot(infos=({}, {"messages": [user("open"), user("again")]}, {})))
    env.reset()
    with pytest.raises(TextEnvError, match="without the response"):
        env.step("one")
