"""Keeping freed memory for the next tensors, as torch does on GPUs.

glibc returns large blocks to the operating system when they are freed, and gets every page of the next one back zeroed,
one page fault for each 4 KiB. An update frees and allocates all its activations and gradients in every step. Measured
on two cores, shape B of the benchmark: 1.2 million faults an update, a quarter of its time; 600 when memory is kept.

glibc can be told to keep what is freed, but then it finds the gaps too small: torch wants addresses that are multiples
of 64, for which glibc looks for 96 bytes more than are asked for, and small objects settle in what it cuts off. Shape B
in float32 needs 2.0 GB like that; with the memory of `freed_memory.cpp`, which large tensors share with nobody, 1.76.
That is compiled, in two seconds, where `native.compile_kernels` is on.
"""

import ctypes
import os
import platform
from functools import cache
from pathlib import Path

import torch

from rlhf.cpu import native

# From glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_SOURCE = Path(__file__).with_suffix(".cpp")


def keep_freed_memory() -> None:
    """Let this process keep what it frees, for good; nothing happens where the C library is not glibc."""
    if platform.libc_ver()[0] != "glibc" or (native.compiling() and _keep_tensors()):
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_MMAP_MAX, 0)  # large blocks come from the heap as well
    mallopt(_TRIM_THRESHOLD, -1)  # and the heap is never given back


@cache
def _keep_tensors() -> bool:
    """Give large tensors memory of their own; say whether that can be done."""
    of_torch = Path(torch.__file__).parent
    library = native.library(
        _SOURCE,
        f"-I{of_torch / 'include'}",
        links=[f"-L{of_torch / 'lib'}", "-lc10"],
        otherwise="freed memory is kept by the C library, which needs more of it",
    )
    if library is None:
        return False
    keep = library.keep_freed_tensors
    keep.argtypes, keep.restype = [ctypes.c_size_t], ctypes.c_bool
    return bool(keep(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
