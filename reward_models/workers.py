"""Calls that may hang: plain functions in a thread of their own, async functions on one shared event loop.

`combine` calls reward functions of users through here. All threads are daemons: one that never returns is left behind
and holds up neither the run nor the end of the interpreter (which does wait for the threads of an executor). Python
cannot stop a thread, so a call that hangs keeps its thread until the process ends.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Awaitable, Callable
from typing import Any

_GRACE_SECONDS = 1.0  # what the event loop may take to notice a timeout before it counts as blocked

_lock = threading.Lock()
_shared_loop: asyncio.AbstractEventLoop | None = None


def call_in_thread(call: Callable[[], Any], timeout_seconds: float) -> Any:
    """Return the result of `call()`, made in a thread of its own.

    Raises:
        TimeoutError: There is no result after `timeout_seconds`.
    """
    future: concurrent.futures.Future[Any] = concurrent.futures.Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # the thread's only way to report it
            future.set_exception(error)

    threading.Thread(target=work, name="reward", daemon=True).start()
    if not concurrent.futures.wait([future], timeout_seconds).done:
        raise TimeoutError(f"no answer within {timeout_seconds:g} seconds")
    return future.result()


class AsyncCall:
    """One call of an async function, running since it was made; several run at the same time.

    All calls of a process share one event loop that lives on between them, so that a function may keep a connection
    open.
    """

    def __init__(self, call: Callable[[], Awaitable[Any]], timeout_seconds: float | None) -> None:
        self._timeout_seconds = timeout_seconds
        self._loop = _running_loop()
        self._future = asyncio.run_coroutine_threadsafe(_limited(call, timeout_seconds), self._loop)

    def result(self) -> Any:
        """Wait for the call and return its result.

        Raises:
            TimeoutError: There is no result `timeout_seconds` after the call was begun.
        """
        limit = None if self._timeout_seconds is None else self._timeout_seconds + _GRACE_SECONDS
        if not concurrent.futures.wait([self._future], limit).done:
            _abandon(self._loop)  # a function that does not give way blocks the loop for everybody
            raise TimeoutError(f"no answer within {self._timeout_seconds:g} seconds, and the event loop is blocked")
        return self._future.result()


async def _limited(call: Callable[[], Awaitable[Any]], timeout_seconds: float | None) -> Any:
    async def guarded() -> Any:
        try:
            return await call()
        except SystemExit as error:  # asyncio would end the shared loop with it
            raise RuntimeError(f"the function ended itself by {error!r}") from error

    task = asyncio.ensure_future(guarded())
    done, _ = await asyncio.wait(
        {task}, timeout=timeout_seconds
    )  # unlike wait_for, does not wait for the cancelled task
    if not done:
        task.cancel()
        raise TimeoutError(f"no answer within {timeout_seconds:g} seconds")
    return task.result()


def _running_loop() -> asyncio.AbstractEventLoop:
    global _shared_loop
    with _lock:
        if _shared_loop is None:
            _shared_loop = asyncio.new_event_loop()
            threading.Thread(target=_shared_loop.run_forever, name="async rewards", daemon=True).start()
        return _shared_loop


def _abandon(loop: asyncio.AbstractEventLoop) -> None:
    global _shared_loop
    with _lock:
        if _shared_loop is loop:
            _shared_loop = None
