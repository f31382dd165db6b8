"""Several reward functions become one score per response.

The vector environment calls a `CombinedReward` once per step, with all episodes that ended in it. Each component's raw
values are kept beside the weighted total, to be logged by themselves. What a function does wrong (it raises, hangs,
answers with NaN or too few values) costs its samples by the component's policy; only the policy "raise" ends the run.
This module neither loads functions (`registry`) nor normalises their values.
"""

from __future__ import annotations

import functools
import logging
import math
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from reward_models.chat import Text
from reward_models.errors import RewardError
from reward_models.protocol import Completion, RewardFunction
from reward_models.registry import is_async
from reward_models.workers import AsyncCall, call_in_thread

Array = npt.NDArray[np.float64]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Component:
    """One reward function with its weight and what happens when it fails.

    Attributes:
        name: Under which its values are logged.
        function: The reward function, plain or async.
        weight: Factor in the total; 0 means that it is only logged.
        on_error: What a failed sample costs: `"raise"` ends the run with a `RewardError`; `"skip"` takes the component
            as not applying to it; a number stands in for the value.
        timeout_seconds: How long one call (a whole batch) may take; None is unlimited. With a limit, a plain function
            is called in a thread other than the main one.

    Raises:
        RewardError: One of these is not allowed.
    """

    name: str
    function: RewardFunction
    weight: float = 1.0
    on_error: Literal["raise", "skip"] | float = "raise"
    timeout_seconds: float | None = None

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise self._error("function", self.function, "a callable")
        if not _is_finite(self.weight):
            raise self._error("weight", self.weight, "a finite number")
        if self.on_error not in ("raise", "skip") and not _is_finite(self.on_error):
            raise self._error("on_error", self.on_error, "'raise', 'skip' or a finite number")
        if self.timeout_seconds is not None and not (_is_finite(self.timeout_seconds) and self.timeout_seconds > 0):
            raise self._error("timeout_seconds", self.timeout_seconds, "a number above 0, or None for no limit")

    def _error(self, key: str, value: object, allowed: str) -> RewardError:
        return RewardError(f"Reward component {self.name!r}: {key} is {value!r}; it must be {allowed}.")


@dataclass(frozen=True)
class Scores:
    """The scores of N responses.

    Attributes:
        total: (N,) weighted sum over the components that apply; NaN where none with a weight other than 0 does.
        components: Name of a component to its (N,) values, unweighted; NaN where it does not apply or failed.
        failures: Name of a component to the number of samples that it failed on.
    """

    total: Array
    components: dict[str, Array]
    failures: dict[str, int]


@dataclass(frozen=True)
class _Answer:
    """What one component said: values (N,), NaN for none, and what was wrong with each sample (N,), mostly None."""

    values: Array
    faults: list[str | None]
    cause: BaseException | None = None


class CombinedReward:
    """The weighted sum of several reward functions.

    Async functions run at the same time; plain ones run one after the other meanwhile.

    Raises:
        RewardError: There is no component, two have one name, or all weights are 0.
    """

    def __init__(self, components: Sequence[Component]) -> None:
        names = [component.name for component in components]
        if len(set(names)) < len(names):
            raise RewardError(f"Reward components must have different names, got {names}.")
        if not any(component.weight for component in components):
            raise RewardError(
                f"No reward component has a weight other than 0 (components: {names}); give one a weight."
            )
        self.components = tuple(components)

    def __call__(self, prompts: list[Text], completions: list[Completion], **columns: Any) -> Scores:
        """Score N responses.

        Args:
            prompts: N prompts, each a string or a list of messages.
            completions: N responses in the form of their prompts.
            columns: Further columns, each a list of N; `completion_ids` among them.

        Raises:
            RewardError: A component with the policy "raise" failed; names component, sample and value.
        """
        count = len(completions)
        lengths = {"prompts": len(prompts), **{name: len(column) for name, column in columns.items()}}
        assert all(length == count for length in lengths.values()), f"{count} completions, but {lengths}"
        total, applies = np.zeros(count), np.zeros(count, dtype=bool)
        values: dict[str, Array] = {}
        failures: dict[str, int] = {}
        answers = self._ask({"prompts": prompts, "completions": completions, **columns}, count)
        for component, answer in zip(self.components, answers, strict=True):
            values[component.name] = answer.values
            failures[component.name] = sum(fault is not None for fault in answer.faults)
            counted = _apply_policy(component, answer, prompts)
            here = ~np.isnan(counted) & (component.weight != 0)
            total[here] += component.weight * counted[here]
            applies |= here
        return Scores(np.where(applies, total, np.nan), values, failures)

    def _ask(self, samples: dict[str, Any], count: int) -> list[_Answer]:
        """Call every function; what it raises becomes part of its answer."""
        if not count:
            return [_Answer(np.zeros(0), []) for _ in self.components]
        waits = [_begin(component, samples) for component in self.components]
        # The async functions are running by now; the plain ones run before anything waits for the async ones.
        order = sorted(range(len(waits)), key=lambda i: is_async(self.components[i].function))
        answers = {i: _attempt(waits[i], count) for i in order}
        return [answers[i] for i in range(len(waits))]


def _begin(component: Component, samples: dict[str, Any]) -> Callable[[], Any]:
    """Start an async function, and return what gets the component's answer."""
    call: Callable[[], Any] = functools.partial(component.function, **samples)
    if is_async(component.function):
        return AsyncCall(call, component.timeout_seconds).result
    if component.timeout_seconds is None:
        return call
    return functools.partial(call_in_thread, call, component.timeout_seconds)


def _attempt(call: Callable[[], Any], count: int) -> _Answer:
    try:
        return _read(call(), count)
    except (Exception, SystemExit) as error:
        return _Answer(np.full(count, np.nan), [_describe(error)] * count, error)


def _read(answer: Any, count: int) -> _Answer:
    """Turn what a function returned into N numbers, with a fault for each that is none."""
    items = answer.tolist() if hasattr(answer, "tolist") else answer
    if not isinstance(items, (list, tuple)):
        raise TypeError(f"it returned {items!r} of type {type(items).__name__}, not a list of numbers")
    if len(items) != count:
        raise ValueError(f"it returned {len(items)} values for {count} samples")
    faults = [None if item is None or _is_finite(item) else f"it returned {item!r}" for item in items]
    usable = [fault is None and item is not None for fault, item in zip(faults, items, strict=True)]
    values = [float(item) if ok else math.nan for ok, item in zip(usable, items, strict=True)]
    return _Answer(np.array(values, dtype=np.float64), faults)


def _is_finite(value: Any) -> bool:
    """Return whether `value` is a finite number: Python's, NumPy's or a tensor with one element, but not a text."""
    if isinstance(value, str):
        return False
    try:
        return math.isfinite(value)
    except (TypeError, ValueError, OverflowError):
        return False


def _apply_policy(component: Component, answer: _Answer, prompts: list[Text]) -> Array:
    """Return the values that count for the total, (N,): those of failed samples as the component's policy says."""
    failed = np.array([fault is not None for fault in answer.faults], dtype=bool)
    if not failed.any():
        return answer.values
    first = int(failed.argmax())
    where = "all samples" if failed.all() else f"{failed.sum()} of {len(failed)} samples"
    report = (
        f"Reward component {component.name!r} failed on {where}, first on sample {first} "
        f"(prompt {_excerpt(prompts[first])}): {answer.faults[first]}."
    )
    if component.on_error == "raise":
        hint = ""
        if isinstance(answer.cause, TypeError) and isinstance(prompts[first], str):
            hint = " Prompts are strings here, so completions are too; a function may expect lists of messages."
        raise RewardError(
            f"{report}{hint} A finite number or None is allowed for each sample. Mend the function, or set on_error to "
            "'skip' (the component does not count for the sample) or to a number (which counts instead)."
        ) from answer.cause
    logger.warning("%s on_error is %r.", report, component.on_error)
    return answer.values if component.on_error == "skip" else np.where(failed, component.on_error, answer.values)


def _describe(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


def _excerpt(prompt: Text) -> str:
    text = repr(prompt if isinstance(prompt, str) else prompt[-1]["content"])
    return text if len(text) <= 60 else f"{text[:57]}..."
