"""How a run begins: in this process or in several. Stands between `rlhf.cli` and `pipeline.py`.

Started by torchrun, accelerate or deepspeed, a process finds its rank in the environment and starts no others.
"""

import os
from collections.abc import Sequence

from rlhf.config.load import LoadedConfig
from rlhf.errors import ConfigError
from rlhf.launch.processes import launch, world_size
from rlhf.run.manifest import Manifest
from rlhf.run.pipeline import folder_of, make_plan, run_pipeline


def distributed_overrides(processes: int | None, zero: int | None) -> list[str]:
    """The keys of section `distributed` that the command line and a launcher set.

    Args:
        processes: Value of --processes, None if it was not given.
        zero: Value of --zero, None if it was not given.

    Raises:
        ConfigError: A launcher has started another number of processes than --processes says.
    """
    if _is_launched():
        launched = world_size()
        if processes not in (None, launched):
            raise ConfigError(
                f"--processes is {processes}, but the launcher started {launched} processes: leave --processes out"
            )
        processes = launched
    flags = {"processes": processes, "zero": zero}
    return [f"distributed.{name}={value}" for name, value in flags.items() if value is not None]


def start(loaded: LoadedConfig, only: str | None, arguments: Sequence[str]) -> int:
    """Runs the pipeline, in new processes if the configuration asks for several.

    Args:
        loaded: The configuration.
        only: The one stage to run, None for all.
        arguments: The command line behind `rlhf`, which each new process gets.

    Returns:
        Exit code.

    Raises:
        UserError: See `run_pipeline`; mistakes that the plan shows are raised before processes are started.
    """
    config = loaded.config
    processes = config.distributed.processes
    if processes > 1 and not _is_launched():
        plan = make_plan(config, Manifest.read(folder_of(config).manifest), only)
        if any(step.reason is not None for step in plan):
            return launch(arguments, processes)
    run_pipeline(loaded, only)
    return 0


def _is_launched() -> bool:
    return "RANK" in os.environ
