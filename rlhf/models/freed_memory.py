"""Keeping freed memory for the next tensors, as torch does on GPUs.

glibc returns large blocks to the operating system when they are freed, and gets every page of the next one back zeroed,
one page fault for each 4 KiB. An update frees and allocates all its activations and gradients in every step. Measured
on two cores, shape B of the benchmark: 1.2 million faults an update, a quarter of its time; 600 when memory is kept.
"""

import ctypes
import platform

# From glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Let this process keep what it frees, for good; nothing happens where the C library is not glibc."""
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_MMAP_MAX, 0)  # large blocks come from the heap as well
    mallopt(_TRIM_THRESHOLD, -1)  # and the heap is never given back
