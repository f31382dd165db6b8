"""Finding reward functions by name: modules, files, built-in rules, factories, and what is wrong with each."""

from __future__ import annotations

import asyncio
import sys

import pytest

from reward_models.errors import RewardError
from reward_models.registry import is_async, load_function

FILE = """
from dataclasses import dataclass
from neighbour import BONUS

def plain(completions, **kwargs):
    return [float(len(c)) + BONUS for c in completions]

def with_arguments(completions, factor=1.0, offset=0.0, **kwargs):
    return [factor * len(c) + offset for c in completions]

async def asynchronous(completions, factor=1.0, **kwargs):
    return [factor * len(c) for c in completions]

def columns_only(**kwargs):
    return [float(k) for k in kwargs["gold"]]

def no_kwargs(completions):
    return [0.0 for _ in completions]

@dataclass
class Factory:
    factor: float
    def __call__(self, completions, **kwargs):
        return [self.factor * len(c) for c in completions]

def factory_of_a_number(factor=2.0):
    return factor

def failing_factory(factor):
    raise OSError("disk on fire")

constant = 3
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path.copy())
    (tmp_path / "neighbour.py").write_text("BONUS = 0.5\n", encoding="utf-8")
    path = tmp_path / "rewards.py"
    path.write_text(FILE, encoding="utf-8")
    yield path
    sys.modules.pop("neighbour", None)


def call(function, **columns):
    return function(prompts=["p", "q"], completions=["ab", "abc"], completion_ids=[[1] * 9, [1, 2, 1, 2]], **columns)


def test_function_of_a_file_with_an_import_of_its_neighbour(file) -> None:
    assert call(load_function(f"{file}:plain")) == [2.5, 3.5]


def test_arguments_are_bound_and_win_over_columns(file) -> None:
    function = load_function(f"{file}:with_arguments", {"factor": 2, "offset": 1})
    assert call(function) == [5.0, 7.0]
    assert call(function, factor=[9, 9]) == [5.0, 7.0]
    assert function.__name__ == "with_arguments"


def test_async_function_stays_async_with_arguments(file) -> None:
    function = load_function(f"{file}:asynchronous", {"factor": 3})
    assert is_async(function)
    assert asyncio.run(call(function)) == [6.0, 9.0]
    assert not is_async(load_function(f"{file}:with_arguments", {"factor": 3}))


def test_async_call_method_is_seen() -> None:
    class Judge:
        async def __call__(self, completions, **kwargs):
            return []

    assert is_async(Judge())


def test_function_of_columns_alone_is_no_factory(file) -> None:
    assert call(load_function(f"{file}:columns_only"), gold=[1, 2]) == [1.0, 2.0]


def test_factory_is_called_with_the_arguments(file) -> None:
    assert call(load_function(f"{file}:Factory", {"factor": 10})) == [20.0, 30.0]


def test_files_of_one_name_do_not_replace_each_other(tmp_path, file) -> None:
    other = tmp_path / "other" / "rewards.py"
    other.parent.mkdir()
    other.write_text("def plain(completions, **kwargs):\n    return [0.0 for _ in completions]\n", encoding="utf-8")
    first, second = load_function(f"{file}:plain"), load_function(f"{other}:plain")
    assert call(first) == [2.5, 3.5]
    assert call(second) == [0.0, 0.0]


def test_relative_path_is_that_of_the_working_folder(file, monkeypatch) -> None:
    monkeypatch.chdir(file.parent)
    assert call(load_function("rewards.py:plain")) == [2.5, 3.5]


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("{file}:plian", None, r"rewards\.py has no function 'plian'; did you mean plain\?$"),
        ("{file}.missing.py:plain", None, "there is no file"),
        ("{file}:constant", None, "cannot be called"),
        ("{file}:no_kwargs", None, r"takes \(completions\) and no \*\*kwargs"),
        ("{file}:with_arguments", {"fcator": 2}, r"no argument 'fcator' \(did you mean factor\?\).*factor, offset"),
        ("{file}:with_arguments", {"completions": 2}, "no argument 'completions'"),
        ("{file}:plain", {"factor": 2}, "Allowed are: none"),
        ("{file}:Factory", None, "called as a factory with args {}, which failed"),
        ("{file}:failing_factory", {"factor": 1}, "disk on fire"),
        ("{file}:factory_of_a_number", None, "is 2.0, which cannot be called"),
        ("lenght", None, r"no built-in reward 'lenght' \(did you mean length\?\)"),
        (
            "nothing_of_this_name:f",
            None,
            "importing nothing_of_this_name fails: ModuleNotFoundError.*'path/to/file.py:function'",
        ),
    ],
)
def test_mistakes_are_named_before_the_run(file, name, args, message) -> None:
    with pytest.raises(RewardError, match=message):
        load_function(name.format(file=file), args)


def test_file_that_fails_when_imported(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "path", sys.path.copy())
    path = tmp_path / "broken.py"
    path.write_text("import nothing_of_this_name\n", encoding="utf-8")
    with pytest.raises(RewardError, match=r"importing .*broken\.py fails: ModuleNotFoundError"):
        load_function(f"{path}:f")


def test_trl_format_reward_is_used_unchanged() -> None:
    function = load_function("trl.rewards:think_format_reward")
    texts = ["<think>a</think> b", "a"]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    assert function(prompts=[[], []], completions=completions, completion_ids=[[1], [2]], topic=["x", "y"]) == [
        1.0,
        0.0,
    ]


def test_trl_factories_are_used_unchanged() -> None:
    overlong = load_function(
        "trl.rewards:get_soft_overlong_punishment", {"max_completion_len": 10, "soft_punish_cache": 4}
    )
    assert call(overlong) == [-0.75, 0.0]
    repetition = load_function("trl.rewards:get_repetition_penalty_reward", {"ngram_size": 2, "max_penalty": -2.0})
    assert call(repetition) == pytest.approx([-2 * 7 / 8, -2 / 3], abs=1e-12)
    by_default = load_function("trl.rewards:get_repetition_penalty_reward")
    assert call(by_default) == pytest.approx([-6 / 7, 0.0], abs=1e-12)
    with pytest.raises(RewardError, match="max_penalty 1 should not be positive"):
        load_function("trl.rewards:get_repetition_penalty_reward", {"max_penalty": 1})
