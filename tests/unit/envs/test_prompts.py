"""rlhf/Prompts-v0: one prompt, one response; rows are checked."""

import gymnasium
import pytest

from envs import TextEnvError
from envs.tasks.prompts import DEFAULT_PROMPTS, CheckedPrompts, PromptsEnv

MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Where is my hat?"}]


def test_one_response_ends_the_episode():
    env = PromptsEnv([{"prompt": "Hello?", "topic": "greeting", "answers": ["hi"]}])
    observation, info = env.reset(seed=0)
    assert observation == info["prompt"] == "Hello?"
    assert info["columns"] == {"topic": "greeting", "answers": ["hi"]}
    observation, reward, terminated, truncated, info = env.step("Hi!")
    assert (observation, reward, terminated, truncated) == ("", 0.0, True, False)
    assert info["messages"] == [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi!"}]
    assert info["columns"] == {"topic": "greeting", "answers": ["hi"]}


def test_strings_and_messages_may_be_mixed():
    env = PromptsEnv(["a", {"prompt": MESSAGES, "id": 7}])
    assert env.num_rows == 2
    assert env.reset(options={"index": 0})[1]["prompt"] == "a"
    observation, info = env.reset(options={"index": 1})
    assert observation == "Where is my hat?"
    assert info["prompt"] == MESSAGES
    assert info["columns"] == {"id": 7}


def test_rows_are_shared_and_not_changed():
    rows = [{"prompt": MESSAGES, "nested": {"x": [1]}}]
    env = PromptsEnv(rows)
    _, info = env.reset()
    info["columns"]["nested"]["x"].append(2)
    info["prompt"][1]["content"] = "changed"
    assert rows == [{"prompt": MESSAGES, "nested": {"x": [1]}}]
    assert MESSAGES[1]["content"] == "Where is my hat?"


class Counted(dict):
    """A row that counts how often its prompt is read."""

    reads = 0

    def __getitem__(self, key):
        type(self).reads += key == "prompt"
        return super().__getitem__(key)


def test_many_environments_check_shared_rows_once():
    rows = [Counted(prompt="a"), Counted(prompt="b")]
    shared = CheckedPrompts(rows)
    once = Counted.reads
    environments = [gymnasium.make("rlhf/Prompts-v0", prompts=shared) for _ in range(8)]
    assert Counted.reads == once > 0
    assert {env.unwrapped.num_rows for env in environments} == {2}
    with pytest.raises(TextEnvError, match=r"prompts\[1\] has no 'prompt'"):
        CheckedPrompts([{"prompt": "a"}, {}])


def test_gymnasium_makes_it_without_arguments():
    env = gymnasium.make("rlhf/Prompts-v0")
    assert env.reset(seed=0)[0] in DEFAULT_PROMPTS
    assert env.unwrapped.num_rows == len(DEFAULT_PROMPTS)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], "prompts is empty"),
        ("Hello", "must be a list of rows, got str"),
        ({"prompt": "Hello"}, "must be a list of rows, got dict"),
        (None, "must be a list of rows, got NoneType"),
        (iter(["a"]), "must be a list of rows"),
        (["a", 5], r"prompts\[1\] is int 5"),
        (["a", {"text": "b"}], r"prompts\[1\] has no 'prompt'; its keys are \['text'\]"),
        ([{"prompt": 3}], r"prompts\[0\]\['prompt'\] is neither text nor messages"),
        ([{"prompt": []}], r"prompts\[0\]\['prompt'\] is neither text nor messages"),
        ([{"prompt": [{"role": "user"}]}], r"prompts\[0\]\['prompt'\] is neither text nor messages"),
        ([{"prompt": [{"role": "assistant", "content": "x"}]}], "ends with a message of the assistant"),
        (["a", "  \n"], r"prompts\[1\]\['prompt'\] ends with an empty message"),
        ([{"prompt": "a", "completions": 1}], "column 'completions', which is an argument of reward functions"),
        ([{"prompt": "a", "completion_ids": 1}], "column 'completion_ids'"),
    ],
)
def test_bad_rows_are_named(prompts, message):
    with pytest.raises(TextEnvError, match=message):
        PromptsEnv(prompts)
