"""`check_text_env` says in words what is wrong with an environment, and nothing of one that is right."""

import random

import gymnasium
import pytest
from gymnasium.spaces import Text

from envs import Reply, TextEnv
from envs.base import Opening
from envs.check import check_text_env


class Right(TextEnv):
    """Ends by itself, pays for length, draws from its own generator."""

    num_rows = 20

    def open_row(self, index):
        return Opening(f"question {index}", columns={"index": index})

    def reply(self, response):
        over = len(response) > 100 or self.np_random.random() < 0.3
        return Reply(None if over else "more", reward=float(len(response) % 7), terminated=over)


class Global(Right):
    def reply(self, response):
        return Reply(None, reward=random.random(), terminated=True)


class Endless(Right):
    def reply(self, response):
        return Reply("more", reward=0.0)


class Failing(Right):
    def reply(self, response):
        return None if response == "42" else Reply("more", reward=1.0)


class Unwritable(Right):
    def open_row(self, index):
        return Opening("question", columns={"answer": {1, 2}})


class Old(gymnasium.Env):
    observation_space, action_space = Text(50), Text(50)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return "question", {}

    def step(self, action):
        return "answer", 1.0, True, {}


class OnePrompt(Old):
    def step(self, action):
        return "", float(len(action)), True, True, {}


@pytest.fixture
def check(monkeypatch):
    """Registers a class, and returns what was found, by level."""

    def found(target, **kwargs):
        monkeypatch.setitem(gymnasium.registry, "test/X-v0", gymnasium.envs.registration.EnvSpec("test/X-v0", target))
        findings = check_text_env("test/X-v0", kwargs)
        return {level: [f.text for f in findings if f.level == level] for level in ("ok", "note", "wrong")}

    return found


@pytest.mark.parametrize("id", ["rlhf/Dialogue-v0", "rlhf/ProbeTwoTurns-v0"])
def test_nothing_is_wrong_with_ours(id):
    assert not [str(finding) for finding in check_text_env(id, {}) if finding.level == "wrong"]


def test_an_environment_that_is_right(check):
    found = check(Right)
    assert (found["wrong"], found["note"]) == ([], [])
    assert any(text.startswith("10 random episodes: ") for text in found["ok"])


@pytest.mark.parametrize(
    ("target", "level", "text"),
    [
        (Global, "wrong", "went another way when they were played again"),
        (Endless, "note", "every reward was 0: "),
        (Endless, "note", "no episode ended: ppo.environment.max_turns (here 8) cuts all of them off"),
        (Failing, "wrong", "given the response '42', of the episode with row "),
        (Failing, "wrong", "Failing.reply returned NoneType; it must return envs.Reply"),
        (Unwritable, "wrong", "info['columns'] holds what cannot be written down"),
        (Old, "wrong", "part 'done' into terminated and truncated"),
        (OnePrompt, "note", "10 seeds gave one prompt, "),
        (OnePrompt, "note", "terminated and truncated at once"),
    ],
)
def test_what_is_wrong_is_said(check, target, level, text):
    said = check(target)[level]
    assert any(text in each for each in said), said


def test_what_cannot_be_made_is_the_only_finding(check):
    found = check(Right, size=3)
    assert found["ok"] == found["note"] == []
    assert "unexpected keyword argument 'size'" in found["wrong"][0]
    assert "Discrete(2)" in str(check_text_env("CartPole-v1", {})[0])


def test_a_slow_environment_is_told_of_workers(check, monkeypatch):
    monkeypatch.setattr("envs.check._SLOW_SECONDS", 0.0)
    assert any("ppo.environment.workers" in text for text in check(Right)["note"])
