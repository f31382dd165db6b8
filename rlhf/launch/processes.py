"""The processes of a run: starting them, meeting the others, and passing results around.

`launch` starts them from the command line; torchrun, accelerate and deepspeed may do so too, with the same result. A
run of one process needs no process group, and everything here then does nothing. Sharding is `deepspeed.py`'s matter.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar, cast

from rlhf.errors import ConfigError

T = TypeVar("T")

_GRACE_SECONDS = 10.0  # for the others to end by themselves, and say why, after one process has failed
_TIMEOUT = timedelta(days=1)  # others wait while the first process works alone; `launch` notices one that has died


def rank() -> int:
    """Number of this process, from 0; torchrun, accelerate, deepspeed and `launch` all set it."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """Number of processes of this run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join() -> None:
    """Meet the other processes of this run, whoever started them; does nothing alone, or a second time.

    Raises:
        ConfigError: There are more processes than GPUs.
    """
    if world_size() == 1:
        return
    import torch

    if torch.distributed.is_initialized():
        return
    backend = "gloo"
    if torch.cuda.is_available():
        local_rank, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local_rank >= devices:
            raise ConfigError(
                f"distributed.processes is too large: process {local_rank} of this machine finds {devices} GPUs. "
                "Start at most one process for each GPU."
            )
        torch.cuda.set_device(local_rank)
        backend = "cpu:gloo,cuda:nccl"
    torch.distributed.init_process_group(backend, timeout=_TIMEOUT)
    atexit.register(_leave)


def barrier() -> None:
    """Wait until every process has come here."""
    if world_size() > 1:
        import torch

        join()
        torch.distributed.barrier()


def gather(own: Sequence[T]) -> list[T]:
    """Put together what the processes made of `items[rank() :: world_size()]`, in the order of the items.

    Args:
        own: Results of this process, one for each of its items; anything that can be pickled.

    Returns:
        Results of all processes, on every process.
    """
    if world_size() == 1:
        return list(own)
    import torch

    join()
    parts: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(parts, list(own))
    return [part[i] for i in range(len(parts[0])) for part in parts if i < len(part)]


def from_first_process(make: Callable[[], T]) -> T:
    """Let the first process make something, and give it to all of them.

    Args:
        make: Called in the first process alone; returns what can be pickled.

    Raises:
        Exception: What `make` raised, on every process, so that none waits for ever.
    """
    if world_size() == 1:
        return make()
    own: list[tuple[T | None, Exception | None]] = []
    if rank() == 0:
        try:
            own = [(make(), None)]
        except Exception as error:
            own = [(None, error)]
    [(made, raised)] = gather(own)
    if raised is not None:
        raise raised
    return cast(T, made)


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run `python -m rlhf ARGUMENTS` in several processes on this machine.

    Args:
        arguments: The command line behind `rlhf`.
        processes: How many.

    Returns:
        The exit code of the process that failed first, so that a user's mistake keeps its code; 0 if none did.
    """
    shared = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        **rendezvous(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS") or str(max(1, _cores() // processes)),
    }
    command = [sys.executable, "-m", "rlhf", *arguments]
    children: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(processes):
            own = {"RANK": str(number), "LOCAL_RANK": str(number)}
            children.append(subprocess.Popen(command, env={**os.environ, **shared, **own}))
        return _first_failure(children)
    finally:
        _stop(children)


def rendezvous() -> dict[str, str]:
    """Where the processes of this machine meet: a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # what this process may use, which containers limit
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _first_failure(children: Sequence["subprocess.Popen[bytes]"]) -> int:
    """Wait for all, or until one has failed and the others had time to end too."""
    while True:
        codes = [child.poll() for child in children]
        failed = next((code for code in codes if code), None)
        if failed is not None:
            deadline = time.monotonic() + _GRACE_SECONDS
            while time.monotonic() < deadline and any(child.poll() is None for child in children):
                time.sleep(0.05)
            return failed if failed > 0 else 128 - failed  # killed by signal n: n + 128, as shells say it
        if all(code == 0 for code in codes):
            return 0
        time.sleep(0.05)


def _stop(children: Sequence["subprocess.Popen[bytes]"]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        running = [child for child in children if child.poll() is None]
        for child in running:
            child.send_signal(number)
        for child in running:
            try:
                child.wait(timeout=_GRACE_SECONDS)
            except subprocess.TimeoutExpired:
                continue


def _leave() -> None:
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
