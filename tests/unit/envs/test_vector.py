"""TextVectorEnv: batching, seeds and options, and scoring finished episodes in one call."""

import copy
import math
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
from gymnasium.spaces import Text
from gymnasium.vector import AutoresetMode

from envs import TextEnvError, TextVectorEnv, make_text_env
from envs.tasks.dialogue import DialogueEnv
from envs.tasks.prompts import PromptsEnv

PROMPTS = [{"prompt": f"prompt {i}", "topic": f"t{i}"} for i in range(10)]


class FakeScorer:
    """Records its calls; scores a response by its length, None-like for an empty one."""

    def __init__(self):
        self.calls = []

    def __call__(self, prompts, completions, **columns):
        self.calls.append(copy.deepcopy((prompts, completions, columns)))
        texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
        lengths = np.array([len(text) if text else math.nan for text in texts])
        for prompt in prompts:  # a careless reward function must not damage the episode
            if isinstance(prompt, list):
                prompt[0]["content"] = "changed"
        return SimpleNamespace(total=2 * lengths, components={"length": lengths}, failures={"length": 1})


class Plain(gymnasium.Env):
    """A third party's environment: plain spaces, empty infos, ends after `turns` responses."""

    observation_space = Text(50, charset="abcdefghijklmnopqrstuvwxyz ")
    action_space = Text(50)

    def __init__(self, turns=2, reward=0.25):
        self.turns, self.reward = turns, reward

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.turn = 0
        return "question", {}

    def step(self, action):
        self.turn += 1
        return f"more {'x' * self.turn}", self.reward, self.turn >= self.turns, False, {}


def prompts_env(n=3, scorer=None, rows=PROMPTS):
    return TextVectorEnv([lambda: PromptsEnv(rows) for _ in range(n)], scorer)


def choose(*indices):
    return [{"index": i} for i in indices]


def test_spaces_and_metadata():
    env = prompts_env(3)
    assert env.num_envs == 3
    assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    observations, infos = env.reset(seed=0)
    assert observations in env.observation_space
    assert env.action_space.sample() in env.action_space
    assert env.single_observation_space == env.envs[0].observation_space
    assert len(infos) == 3


def test_classes_functions_and_instances_are_taken():
    env = TextVectorEnv([PromptsEnv, lambda: PromptsEnv(["b"]), PromptsEnv(["c"])])
    assert env.reset()[0][1:] == ("b", "c")


def test_after_a_refused_reset_another_is_needed():
    env = prompts_env(2)
    env.reset()
    with pytest.raises(TextEnvError, match="is 99"):
        env.reset(options=choose(0, 99))
    with pytest.raises(TextEnvError, match="before the first reset"):
        env.step(["a", "b"])


def test_one_seed_is_spread_and_repeats():
    env = prompts_env(8)
    first, _ = env.reset(seed=5)
    assert env.reset(seed=5)[0] == first
    assert env.reset(seed=6)[0][:-1] == first[1:]
    assert len(set(first)) > 1
    assert env.reset(seed=np.int64(5))[0] == first


def test_seeds_one_by_one():
    env = prompts_env(3)
    alone = PromptsEnv(PROMPTS).reset(seed=11)[0]
    observations, _ = env.reset(seed=[11, None, np.int64(11)])
    assert observations[0] == observations[2] == alone


def test_options_for_all_and_one_by_one():
    env = prompts_env(3)
    assert env.reset(options={"index": 4})[0] == ("prompt 4",) * 3
    observations, infos = env.reset(options=choose(7, 1, 7))
    assert observations == ("prompt 7", "prompt 1", "prompt 7")
    assert [info["columns"]["topic"] for info in infos] == ["t7", "t1", "t7"]
    assert env.reset(seed=2, options=[None, {"index": 3}, {}])[0][1] == "prompt 3"


def test_without_a_scorer_the_environments_reward_stands():
    env = TextVectorEnv([Plain(turns=1), Plain(turns=2)])
    env.reset()
    _, rewards, terminated, truncated, infos = env.step(["a", "b"])
    assert rewards.dtype == np.float64
    assert rewards.tolist() == [0.25, 0.25]
    assert terminated.tolist() == [True, False]
    assert truncated.tolist() == [False, False]
    for info in infos:
        assert (info["env_reward"], info["score"], info["components"], info["scored"]) == (0.25, 0.0, {}, True)


def test_finished_episodes_are_scored_in_one_call():
    scorer = FakeScorer()
    env = prompts_env(3, scorer)
    env.reset(options=choose(2, 0, 5))
    _, rewards, terminated, _, infos = env.step(["aa", "b", "cccc"], completion_ids=[[1, 2], [3], [4, 5, 6]])
    assert scorer.calls == [
        (
            ["prompt 2", "prompt 0", "prompt 5"],
            ["aa", "b", "cccc"],
            {"topic": ["t2", "t0", "t5"], "completion_ids": [[1, 2], [3], [4, 5, 6]]},
        )
    ]
    assert terminated.all()
    assert rewards.tolist() == [4.0, 2.0, 8.0]
    assert [info["components"] for info in infos] == [{"length": 2.0}, {"length": 1.0}, {"length": 4.0}]
    assert [info["score"] for info in infos] == [4.0, 2.0, 8.0]
    assert [info["env_reward"] for info in infos] == [0.0] * 3
    assert all(info["scored"] for info in infos)
    assert env.failures == {"length": 1}


def test_several_turns_are_scored_at_their_end_only():
    scorer = FakeScorer()
    env = TextVectorEnv([Plain(turns=1), Plain(turns=3), Plain(turns=2)], scorer)
    env.reset()
    _, rewards, _, _, _ = env.step(["a", "bb", "ccc"])
    assert rewards.tolist() == [2.25, 0.25, 0.25]
    observations, rewards, terminated, _, infos = env.step([None, "bb", "ccc"])
    assert rewards.tolist() == [0.0, 0.25, 6.25]
    assert terminated.tolist() == [True, False, True]
    assert infos[0] == {}
    assert observations[0] == "more x"
    _, rewards, terminated, _, infos = env.step([None, "bb", None])
    assert rewards.tolist() == [0.0, 4.25, 0.0]
    assert terminated.all()
    assert infos[1]["env_reward"] == 0.25
    assert [len(prompts) for prompts, _, _ in scorer.calls] == [1, 1, 1]
    prompts, completions, _ = scorer.calls[2]
    assert prompts[0] == [
        {"role": "user", "content": "question"},
        {"role": "assistant", "content": "bb"},
        {"role": "user", "content": "more x"},
        {"role": "assistant", "content": "bb"},
        {"role": "user", "content": "more xx"},
    ]
    assert completions == [[{"role": "assistant", "content": "bb"}]]
    assert infos[1]["messages"][0]["content"] == "question"
    assert env.failures == {"length": 3}


def test_nothing_ended_nothing_scored():
    scorer = FakeScorer()
    env = TextVectorEnv([Plain(turns=2)], scorer)
    env.reset()
    env.step(["a"])
    assert scorer.calls == []


def test_a_truncated_episode_is_scored_too():
    scorer = FakeScorer()
    env = TextVectorEnv([make_text_env("rlhf/Dialogue-v0", max_turns=1)], scorer)
    env.reset(seed=0)
    _, rewards, terminated, truncated, _ = env.step(["zz"])
    assert (terminated.tolist(), truncated.tolist()) == ([False], [True])
    assert rewards[0] == pytest.approx(4.0 - 0.1)


def test_whoever_cannot_go_on_cuts_episodes_off_and_they_are_scored_as_they_stand():
    scorer = FakeScorer()
    env = TextVectorEnv([Plain(turns=9), Plain(turns=9), Plain(turns=1)], scorer)
    env.reset()
    with pytest.raises(TextEnvError, match=r"envs\[0\] is not within an episode that has a response"):
        env.truncate([0])
    env.step(["a", "b", "c"])
    env.step(["bb", "ccc", None], completion_ids=[[5, 6], [7], None])
    rewards, infos = env.truncate([1])
    assert rewards.tolist() == [6.0]
    assert (infos[0]["score"], infos[0]["components"], infos[0]["scored"]) == (6.0, {"length": 3.0}, True)
    prompts, completions, columns = scorer.calls[-1]
    assert [message["content"] for message in prompts[0]] == ["question", "b", "more x"]
    assert completions == [[{"role": "assistant", "content": "ccc"}]]
    assert columns["completion_ids"] == [[7]]
    for over in (1, 2):
        with pytest.raises(TextEnvError, match="not within an episode"):
            env.truncate([over])
    _, _, terminated, truncated, _ = env.step(["d", None, None])
    assert (terminated.tolist(), truncated.tolist()) == ([False, False, True], [False, True, False])
    assert env.truncate([])[0].tolist() == []


def test_episodes_cut_off_without_a_scorer_earn_nothing_more():
    env = TextVectorEnv([Plain(turns=9)])
    env.reset()
    env.step(["a"])
    rewards, infos = env.truncate([0])
    assert rewards.tolist() == [0.0]
    assert (infos[0]["env_reward"], infos[0]["components"], infos[0]["scored"]) == (0.25, {}, True)


def test_dialogues_are_scored_as_messages_from_the_first_turn():
    scorer = FakeScorer()
    env = TextVectorEnv([DialogueEnv(max_turns=1)], scorer)
    _, infos = env.reset(options={"index": 0})
    env.step(["x"])
    prompts, completions, columns = scorer.calls[0]
    assert prompts == [infos[0]["messages"]]
    assert completions == [[{"role": "assistant", "content": "x"}]]
    assert columns == {"scenario": ["parcel_stuck"], "domain": ["delivery"]}


def test_a_call_has_one_form_and_columns_of_all_rows():
    scorer = FakeScorer()
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    rows = [{"prompt": "p", "a": 1}, {"prompt": messages, "b": [2]}]
    env = prompts_env(2, scorer, rows)
    env.reset(options=choose(0, 1))
    env.step(["x", "y"])
    prompts, completions, columns = scorer.calls[0]
    assert prompts == [[{"role": "user", "content": "p"}], messages]
    assert completions == [[{"role": "assistant", "content": "x"}], [{"role": "assistant", "content": "y"}]]
    assert columns == {"a": [1, None], "b": [None, [2]]}
    assert rows[1]["prompt"] == messages


def test_an_episode_that_nobody_can_score_is_marked():
    env = prompts_env(2, FakeScorer())
    env.reset(seed=0)
    _, rewards, _, _, infos = env.step(["", "ok"])
    assert math.isnan(rewards[0])
    assert rewards[1] == 4.0
    assert [info["scored"] for info in infos] == [False, True]
    assert math.isnan(infos[0]["score"])
    assert math.isnan(infos[0]["components"]["length"])


def test_callers_may_change_what_they_got():
    scorer = FakeScorer()
    env = TextVectorEnv([Plain(turns=2)], scorer)
    _, infos = env.reset()
    infos[0]["messages"].clear()
    infos[0]["prompt"].clear()
    observations, _, _, _, infos = env.step(["a"])
    infos[0]["messages"].clear()
    env.step(["b"])
    assert observations == ("more x",)
    assert [m["content"] for m in scorer.calls[0][0][0]] == ["question", "a", "more x"]


def test_a_row_survives_callers_and_reward_functions():
    class Careless(FakeScorer):
        def __call__(self, prompts, completions, tags, **columns):
            scores = super().__call__(prompts, completions, tags=tags, **columns)
            tags[0].append("changed")
            return scores

    messages = [{"role": "user", "content": "u"}]
    env = prompts_env(1, scorer := Careless(), [{"prompt": messages, "tags": ["a"]}])
    for _ in range(2):
        _, infos = env.reset()
        infos[0]["prompt"][0]["content"] = "changed"
        infos = env.step(["x"])[4]
        assert scorer.calls[-1] == ([messages], [[{"role": "assistant", "content": "x"}]], {"tags": [["a"]]})
        assert infos[0]["columns"] == {"tags": ["a"]}
        assert infos[0]["prompt"] == messages == [{"role": "user", "content": "u"}]


def test_reset_begins_anew():
    env = TextVectorEnv([Plain(turns=1)], scorer := FakeScorer())
    for _ in range(2):
        env.reset()
        assert env.step(["a"])[2].tolist() == [True]
    assert [prompts for prompts, _, _ in scorer.calls] == [[[{"role": "user", "content": "question"}]]] * 2
    env.reset()
    assert env.step([None])[2].tolist() == [False]


def test_flags_are_not_shared_between_steps():
    env = TextVectorEnv([Plain(turns=2)])
    env.reset()
    _, _, before, _, _ = env.step(["a"])
    env.step(["b"])
    assert before.tolist() == [False]


def test_a_refused_step_leaves_all_environments_as_they_were():
    env = prompts_env(2)
    env.reset()
    with pytest.raises(TextEnvError, match=r"actions\[1\] is int 5"):
        env.step(["fine", 5])
    assert env.step(["fine", "fine"])[2].all()


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda env: env.step(["a", "b"]), "before the first reset"),
        (lambda env: (env.reset(), env.step(["a"])), "actions is .*one entry for each of the 2"),
        (lambda env: (env.reset(), env.step("ab")), "actions is 'ab'"),
        (lambda env: (env.reset(), env.step(None)), "actions is None"),
        (lambda env: (env.reset(), env.step(["a", None]), env.step(["a", None])), r"envs\[0\] has ended; pass None"),
        (lambda env: (env.reset(), env.step(["a", "b"], completion_ids=[[1]])), "completion_ids is"),
        (lambda env: (env.reset(), env.step(["a", "b"], completion_ids=[[1], None])), r"completion_ids\[1\] is None"),
        (lambda env: env.reset(seed=[1]), r"seed is \[1\]"),
        (lambda env: env.reset(options=[{}] * 3), "options is"),
        (lambda env: env.reset(options=choose(0, 99)), r"options\['index'\] is 99"),
    ],
)
def test_wrong_use(use, message):
    with pytest.raises(TextEnvError, match=message):
        use(prompts_env(2))


@pytest.mark.parametrize("reward", [math.nan, math.inf])
def test_an_environment_must_pay_finite_rewards(reward):
    env = TextVectorEnv([Plain(reward=reward)])
    env.reset()
    with pytest.raises(TextEnvError, match=rf"returned the reward {reward}"):
        env.step(["a"])


def test_wrong_environments():
    with pytest.raises(TextEnvError, match="envs is empty"):
        TextVectorEnv([])
    one = PromptsEnv()
    with pytest.raises(TextEnvError, match="occurs twice"):
        TextVectorEnv([one, one])
    with pytest.raises(TextEnvError, match=r"envs\[1\] .*Discrete"):
        TextVectorEnv([one, gymnasium.make("CartPole-v1")])


def test_close_reaches_every_environment():
    class Closing(Plain):
        closed = 0

        def close(self):
            Closing.closed += 1

    TextVectorEnv([Closing(), Closing()]).close()
    assert Closing.closed == 2


def test_the_real_scorer():
    combine = pytest.importorskip("reward_models.combine")

    def length(prompts, completions, topic, **columns):
        return [None if t == "t1" else float(len(c)) for c, t in zip(completions, topic, strict=True)]

    env = prompts_env(2, combine.CombinedReward([combine.Component("length", length, weight=0.5)]))
    env.reset(options=choose(0, 1))
    _, rewards, _, _, infos = env.step(["four", "four"], completion_ids=[[1], [2]])
    assert rewards[0] == 2.0
    assert math.isnan(rewards[1])
    assert infos[0]["components"] == {"length": 4.0}
    assert infos[1]["scored"] is False
