"""Every environment of the project, in both views, pass Gymnasium's own checker; warnings are errors."""

import gymnasium
import pytest
from gymnasium.spaces import Text
from gymnasium.utils.env_checker import check_env
from gymnasium.wrappers import RecordEpisodeStatistics
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from envs import TokenLevel, list_envs, make_text_env
from reward_models.chat import prepare_tokenizer

IDS = ["rlhf/Prompts-v0", "rlhf/Dialogue-v0"]


class Foreign(gymnasium.Env):
    """A third party's environment with plain text spaces."""

    observation_space = Text(20)
    action_space = Text(20)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return str(self.np_random.integers(100)), {}

    def step(self, action):
        return "ok", float(len(action)), False, False, {}


@pytest.fixture(scope="module")
def tokenizer():
    vocabulary = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return prepare_tokenizer(PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>"), "plain")


@pytest.mark.parametrize("name", [env.id for env in list_envs() if env.ours])
def test_text_view(name):
    check_env(make_text_env(name).unwrapped)


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("limit", [1, 20])
def test_token_view(name, limit, tokenizer):
    env = make_text_env(name)
    check_env(TokenLevel(env, tokenizer, max_response_tokens=limit, max_context_tokens=500), skip_render_check=True)


def test_token_view_of_a_foreign_environment(tokenizer):
    check_env(TokenLevel(Foreign(), tokenizer, 3, 300), skip_render_check=True)


@pytest.mark.parametrize("name", IDS)
def test_gymnasiums_wrappers_and_random_agents(name):
    env = RecordEpisodeStatistics(gymnasium.make(name))
    env.action_space.seed(0)
    env.reset(seed=0)
    ends = 0
    for _ in range(20):
        _, _, terminated, truncated, info = env.step(env.action_space.sample())
        if terminated or truncated:
            ends += 1
            assert info["episode"]["l"] == (1 if name == "rlhf/Prompts-v0" else 4)
            env.reset()
    assert ends >= 5


@pytest.mark.parametrize("name", IDS)
def test_a_random_agent_of_tokens(name, tokenizer):
    env = RecordEpisodeStatistics(TokenLevel(make_text_env(name), tokenizer, 5, 900))
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    for _ in range(60):
        observation, _, terminated, truncated, _ = env.step(env.action_space.sample())
        assert observation in env.observation_space
        if terminated or truncated:
            env.reset()


def test_make_vec_of_gymnasium_works_too():
    env = gymnasium.make_vec("rlhf/Prompts-v0", num_envs=2, vectorization_mode="sync")
    observations, _ = env.reset(seed=0)
    assert len(observations) == 2
    env.step(("a", "b"))
    env.close()
