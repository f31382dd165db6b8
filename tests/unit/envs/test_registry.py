"""Registration, make_text_env for own and foreign ids."""

import importlib
import sys

import gymnasium
import pytest
from gymnasium.spaces import Text
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker

import envs
from envs import TextEnvError, make_text_env
from envs.conversation import Conversation

PLUGIN = '''
import gymnasium
from gymnasium.spaces import Text


class Echo(gymnasium.Env):
    """Says what it heard."""

    observation_space = Text(100, charset="abcdefghijklmnopqrstuvwxyz ")
    action_space = Text(100)

    def __init__(self, greeting="hello", broken=False):
        self.greeting = greeting
        if broken:
            len(5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.greeting, {}

    def step(self, action):
        return "echo", 1.0, False, False, {}


gymnasium.register("plugin/Echo-v0", entry_point=Echo)
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A module that registers a foreign id when it is imported."""
    (tmp_path / "echo_plugin.py").write_text(PLUGIN)
    (tmp_path / "broken_plugin.py").write_text("import surely_not_installed\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("gymnasium.envs.registration.registry", registry := dict(gymnasium.registry))
    monkeypatch.setattr(gymnasium, "registry", registry)
    yield "echo_plugin:plugin/Echo-v0"
    sys.modules.pop("echo_plugin", None)


@pytest.mark.parametrize("name", ["rlhf/Prompts-v0", "rlhf/Dialogue-v0"])
def test_own_ids_come_with_gymnasiums_wrappers_and_without_ours(name):
    env = make_text_env(name)
    assert isinstance(env, OrderEnforcing)
    assert isinstance(env.env, PassiveEnvChecker)
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step("x")
    env.reset(seed=0)
    env.step("x")
    env.reset()
    env.step("y")
    env.close()


def test_arguments_reach_the_environment_and_gymnasium():
    env = make_text_env("rlhf/Prompts-v0", prompts=["only"])
    assert env.reset()[0] == "only"
    env = make_text_env("rlhf/Dialogue-v0", max_episode_steps=2)
    env.reset(seed=0)
    assert env.step("x")[3] is False
    assert env.step("x")[3] is True


def test_importing_again_does_not_register_twice():
    importlib.reload(envs)  # a second registration would warn


def test_a_foreign_id_through_its_module(plugin):
    env = make_text_env(plugin, greeting="good day")
    assert isinstance(env, Conversation)
    observation, info = env.reset(seed=0)
    assert observation == "good day"
    assert info["messages"] == [{"role": "user", "content": "good day"}]
    spoken = "Any response, even beyond the alphabet of its action space."
    assert env.step(spoken)[4]["messages"][1] == {"role": "assistant", "content": spoken}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rlhf/Promts-v0", "Did you mean: `Prompts`.*rlhf/Dialogue-v0, .*rlhf/Prompts-v0.*'module:id'"),
        ("nobody/Env-v0", "Namespace nobody not found"),
        ("rlhf/Prompts-v9", "version `v9`"),
        ("not an id!", "Malformed environment ID"),
        ("a:b:c", "must be a registered Gymnasium id or 'module:id'"),
        (7, "id is 7"),
        ("surely_not_installed:some/Env-v0", "names the module 'surely_not_installed', which cannot be found"),
        ("echo_plugin.sub:some/Env-v0", "names the module 'echo_plugin.sub'"),
    ],
)
def test_unknown_ids(plugin, name, message):
    with pytest.raises(TextEnvError, match=message):
        make_text_env(name)


def test_what_is_wrong_inside_a_module_or_a_constructor_is_said_with_its_cause(plugin):
    with pytest.raises(TextEnvError, match=r"'broken_plugin'.*imported: ModuleNotFoundError.*surely_not") as caught:
        make_text_env("broken_plugin:some/Env-v0")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    with pytest.raises(TextEnvError, match=r"\['broken'\]: TypeError: object of type 'int' has no len"):
        make_text_env(plugin, broken=True)


def test_wrong_arguments_are_named_without_their_values():
    with pytest.raises(TextEnvError, match=r"with the arguments \['promts'\].*unexpected keyword") as caught:
        make_text_env("rlhf/Prompts-v0", promts=["secret"])
    assert "secret" not in str(caught.value)


def test_spaces_that_are_not_text_are_named():
    with pytest.raises(TextEnvError, match=r"CartPole-v1 .* Box\(.*Discrete\(2\).*TransformObservation"):
        make_text_env("CartPole-v1")


def test_one_text_space_is_not_enough(plugin):
    class Half(gymnasium.Env):
        observation_space = Text(5)
        action_space = gymnasium.spaces.Discrete(2)

    gymnasium.register("plugin/Half-v0", entry_point=Half)
    with pytest.raises(TextEnvError, match=r"Discrete\(2\)"):
        make_text_env("plugin/Half-v0")
