"""Reward functions that run at the same time, and functions that hang."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest

from reward_models.combine import CombinedReward, Component
from reward_models.errors import RewardError

PROMPTS = ["first prompt", "second prompt", "third prompt"]
COMPLETIONS = ["a", "bb", "ccc"]


def lengths(completions, **_):
    return [float(len(c)) for c in completions]


def score(*components, **columns):
    return CombinedReward(components)(PROMPTS, COMPLETIONS, **columns)


def assert_values(actual, expected) -> None:
    np.testing.assert_allclose(actual, np.array(expected, dtype=np.float64), atol=1e-12)


def test_async_functions_run_at_the_same_time_as_each_other_and_as_plain_ones() -> None:
    meeting = threading.Barrier(3, timeout=20)  # is passed only if all three are under way at once

    async def waits(completions, **_):
        await asyncio.get_running_loop().run_in_executor(None, meeting.wait)
        return [1.0] * len(completions)

    def plain(completions, **_):
        meeting.wait()
        return [2.0] * len(completions)

    assert_values(score(Component("a", waits), Component("b", plain), Component("c", waits)).total, [4, 4, 4])


def test_async_functions_meet_the_same_event_loop_in_every_call() -> None:
    loops = []

    async def reward(completions, **_):
        loops.append(asyncio.get_running_loop())
        return [0.0] * len(completions)

    combined = CombinedReward([Component("r", reward)])
    for _ in range(2):
        combined(PROMPTS, COMPLETIONS)
    assert loops[0] is loops[1]


def test_call_from_inside_a_running_event_loop() -> None:
    async def reward(completions, **_):
        return [1.0] * len(completions)

    async def main():
        return score(Component("r", reward))

    assert_values(asyncio.run(main()).total, [1, 1, 1])


RELEASE = threading.Event()  # lets the threads that these tests leave behind end with the tests


@pytest.fixture(scope="module", autouse=True)
def _release():
    yield
    RELEASE.set()


def hanging(**_):
    RELEASE.wait(60)
    return [0.0] * 3


async def hanging_async(**_):
    await asyncio.sleep(60)


async def blocking_async(**_):
    RELEASE.wait(60)  # does not give way to the event loop
    return [0.0] * 3


@pytest.mark.parametrize("function", [hanging, hanging_async, blocking_async])
def test_function_that_hangs_is_given_up(function) -> None:
    begin = time.monotonic()
    scores = score(Component("length", lengths), Component("slow", function, on_error="skip", timeout_seconds=0.2))
    assert time.monotonic() - begin < 10
    assert_values(scores.total, [1, 2, 3])
    assert scores.failures["slow"] == 3

    async def reward(completions, **_):
        return [1.0] * len(completions)

    # The next call does not suffer: a blocked event loop has been replaced.
    assert_values(score(Component("r", reward, timeout_seconds=10.0)).total, [1, 1, 1])


def test_timeout_names_the_component_and_the_limit() -> None:
    with pytest.raises(RewardError, match=r"'slow'.*TimeoutError: no answer within 0\.1 seconds"):
        score(Component("slow", hanging, timeout_seconds=0.1))


def test_interpreter_ends_although_functions_hang() -> None:
    script = """
        import time
        from reward_models.combine import CombinedReward, Component

        def plain(**_):
            time.sleep(600)

        async def blocked(**_):
            time.sleep(600)

        parts = [Component(f.__name__, f, on_error="skip", timeout_seconds=0.1) for f in (plain, blocked)]
        print(CombinedReward(parts)(["p"], ["c"]).failures)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "{'plain': 1, 'blocked': 1}"


def test_function_within_its_limit_is_not_disturbed() -> None:
    assert_values(score(Component("length", lengths, timeout_seconds=30.0)).total, [1, 2, 3])
