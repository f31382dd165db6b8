"""TextEnv: choosing rows, keeping the conversation, refusing wrong use."""

from typing import ClassVar

import numpy as np
import pytest

from envs import Opening, Reply, TextEnv, TextEnvError


class Counting(TextEnv):
    """Ten rows; the user counts the responses and is content with the second."""

    notes: ClassVar[dict] = {"tags": ["a"]}

    @property
    def num_rows(self):
        return 10

    def open_row(self, index):
        self.count = 0
        return Opening(prompt=f"row {index}", columns={"number": index, "nested": self.notes}, details={"count": 0})

    def reply(self, response):
        self.count += 1
        last = self.count == 2
        return Reply(None if last else "one", reward=self.count, terminated=last, details={"count": self.count})


def test_an_episode_in_full():
    env = Counting()
    observation, info = env.reset(options={"index": 3})
    assert observation == "row 3"
    assert info == {
        "messages": [{"role": "user", "content": "row 3"}],
        "prompt": "row 3",
        "columns": {"number": 3, "nested": {"tags": ["a"]}},
        "index": 3,
        "count": 0,
    }
    observation, reward, terminated, truncated, info = env.step("first")
    assert (observation, reward, terminated, truncated) == ("one", 1.0, False, False)
    assert [m["role"] for m in info["messages"]] == ["user", "assistant", "user"]
    observation, reward, terminated, truncated, info = env.step("second")
    assert (observation, reward, terminated, truncated) == ("", 2.0, True, False)
    assert [m["content"] for m in info["messages"]] == ["row 3", "first", "one", "second"]
    assert info["messages"][-1]["role"] == "assistant"
    assert info["prompt"] == "row 3"
    assert info["count"] == 2


def test_messages_as_prompt_keep_their_form():
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]

    class WithSystem(Counting):
        def open_row(self, index):
            self.count = 0
            return Opening(prompt=prompt)

    env = WithSystem()
    observation, info = env.reset()
    assert observation == "hi"
    assert info["prompt"] == info["messages"] == prompt
    info["prompt"][0]["content"] = "changed"
    info = env.step("x")[4]
    info["prompt"][0]["content"] = "changed"
    assert prompt[0]["content"] == "Be brief."
    assert env.step("y")[4]["prompt"][0]["content"] == "Be brief."


def test_same_seed_same_rows():
    def rows(seed):
        env = Counting()
        return [env.reset(seed=seed)[1]["index"]] + [env.reset()[1]["index"] for _ in range(19)]

    assert rows(7) == rows(7)
    assert rows(7) != rows(8)
    assert len(set(rows(7))) > 5


def test_a_chosen_row_leaves_the_draw_alone():
    plain, chosen = Counting(), Counting()
    plain.reset(seed=1)
    chosen.reset(seed=1)
    chosen.reset(options={"index": 0})
    assert plain.reset()[1]["index"] == chosen.reset()[1]["index"]


@pytest.mark.parametrize("index", [0, 9, np.int64(4)])
def test_valid_indices(index):
    info = Counting().reset(options={"index": index})[1]
    assert info["index"] == index
    assert type(info["index"]) is int


@pytest.mark.parametrize("index", [-1, 10, 2.0, "3", True, None])
def test_an_index_out_of_range_names_the_range(index):
    with pytest.raises(TextEnvError, match=r"options\['index'\] is .*10 rows.*0 to 9"):
        Counting().reset(options={"index": index})


def test_unknown_options_are_refused():
    with pytest.raises(TextEnvError, match="Unknown option 'idx'"):
        Counting().reset(options={"idx": 3})


def test_infos_are_copies():
    env = Counting()
    _, first = env.reset(options={"index": 0})
    first["messages"][0]["content"] = "changed"
    first["columns"]["nested"]["tags"].append("b")
    _, _, _, _, second = env.step("x")
    assert second["messages"][0]["content"] == "row 0"
    assert second["columns"]["nested"] == {"tags": ["a"]}
    assert Counting.notes == {"tags": ["a"]}


def test_a_step_needs_an_episode():
    env = Counting()
    with pytest.raises(TextEnvError, match="before the first reset"):
        env.step("x")
    env.reset()
    env.step("x")
    env.step("y")
    with pytest.raises(TextEnvError, match="has ended"):
        env.step("z")
    env.reset()
    assert env.step("x")[0] == "one"


@pytest.mark.parametrize("action", [5, b"x", None, ["x"]])
def test_the_action_must_be_a_string(action):
    env = Counting()
    env.reset()
    with pytest.raises(TextEnvError, match="whole response as a string"):
        env.step(action)


def test_a_refused_action_changes_nothing():
    env = Counting()
    env.reset()
    with pytest.raises(TextEnvError, match="lone surrogate"):
        env.step("\ud800")
    assert env.step("x")[1] == 1.0


def test_silence_is_allowed_at_the_end_only():
    assert Reply(None, 0.0, truncated=True).message is None
    with pytest.raises(TextEnvError, match="must end the episode"):
        Reply(None, 0.0)
