"""Which process of a distributed run is this? Only the first one writes files, tables and progress bars.

Read from the environment that torchrun, accelerate and deepspeed set, so that it can be asked before any process
group exists and without importing torch.
"""

import os

__all__ = ["is_main_process"]


def is_main_process() -> bool:
    """True in a run of one process, and in the first process of a distributed one."""
    return os.environ.get("RANK", "0") == "0"
