"""What is freed is used again: counted in page faults, in a process of its own, because the setting stays."""

import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from rlhf.models import freed_memory

SCRIPT = """
import resource
import torch
from rlhf.models.freed_memory import keep_freed_memory

def faults(megabytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(megabytes * 2**20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = faults(40)
keep_freed_memory()
faults(80)
print(usual, faults(40))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_large_tensors_get_the_pages_of_those_before_them():
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    usual, kept = map(int, run.stdout.split())
    assert kept < usual / 4


def test_other_c_libraries_are_left_alone(monkeypatch):
    called = []
    library = SimpleNamespace(mallopt=lambda option, value: called.append(option))
    monkeypatch.setattr(freed_memory.ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(freed_memory.platform, "libc_ver", lambda: ("", ""))
    freed_memory.keep_freed_memory()
    assert called == []
    monkeypatch.setattr(freed_memory.platform, "libc_ver", lambda: ("glibc", "2.36"))
    freed_memory.keep_freed_memory()
    assert len(called) == 2
