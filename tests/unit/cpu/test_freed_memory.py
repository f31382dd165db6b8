"""What is freed is used again. Counted in processes of their own, because the setting stays for good."""

import json
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from rlhf.cpu import freed_memory, native

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")

START = """
import json, os, random, resource, threading
import torch
from rlhf.cpu import native
from rlhf.cpu.freed_memory import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def keep(compiled):
    native.compile_kernels(compiled)
    keep_freed_memory()
"""
IN_TURN = """
def faults_of(megabytes):
    before = faults()
    for _ in range(8):
        torch.ones(megabytes * 2**20, dtype=torch.uint8)
    return faults() - before

usual = faults_of(40)
keep(compiled)
faults_of(80)
print(json.dumps([usual, faults_of(40)]))
"""
# Activations of many sizes, freed from the last to the first while gradients take their places, then one tensor as
# large as all of them. 64 MiB are alive at a time.
STEPS = """
keep(compiled)

def step(chance):
    activations, gradients = [], []
    for _ in range(64):
        activations.append(torch.zeros(2**20 - 64 * chance.randrange(8), dtype=torch.uint8))
    while activations:
        del activations[-1]
        gradients.append(torch.zeros(2**19, dtype=torch.uint8))
    gradients.clear()
    torch.zeros(2**26 - 2**16, dtype=torch.uint8)

before = faults()
for seed in range(40):
    step(random.Random(seed))
print(json.dumps((faults() - before) * os.sysconf("SC_PAGE_SIZE") / 2**20))
"""
# Blocks of random sizes, freed in random order by two threads, each full of its own number.
CONTENTS = """
keep(compiled)

def use(seed, wrong):
    chance, alive = random.Random(seed), {}
    for number in range(3000):
        size = chance.choice([1, 100, 2**14 - 1, 2**14, 2**14 + 1, 2**16, chance.randrange(2**19)])
        alive[number] = torch.full((size,), number, dtype=torch.int32)
        wrong.append(alive[number].data_ptr() % 64)
        while len(alive) > chance.randrange(30):
            key = chance.choice(list(alive))
            wrong.append(int((alive.pop(key) != key).sum()))

wrong = []
threads = [threading.Thread(target=use, args=(seed, wrong)) for seed in (1, 2)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps([len(wrong), sum(map(bool, wrong))]))
"""


def measured(script, compiled=True):
    """What the script prints."""
    source = f"{START}\ncompiled = {compiled}\n{script}"
    return json.loads(subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("compiled", [False, True])
def test_large_tensors_get_the_pages_of_those_before_them(compiled):
    usual, kept = measured(IN_TURN, compiled)
    assert kept < usual / 4


def test_what_is_freed_is_joined():
    """Forty steps with 64 MiB of tensors alive at a time take hardly more; where gaps are not joined, twice as much."""
    assert 64 <= measured(STEPS) < 70


def test_every_tensor_has_its_memory_to_itself_and_is_aligned():
    checks, wrong = measured(CONTENTS)
    assert checks > 10_000
    assert wrong == 0


@pytest.fixture
def told(monkeypatch):
    """What the C library is told."""
    called = []
    library = SimpleNamespace(mallopt=lambda option, value: called.append(option))
    monkeypatch.setattr(freed_memory.ctypes, "CDLL", lambda name: library)
    return called


def test_other_c_libraries_are_left_alone(monkeypatch, told):
    monkeypatch.setattr(freed_memory.platform, "libc_ver", lambda: ("", ""))
    freed_memory.keep_freed_memory()
    assert told == []


def test_the_c_library_keeps_it_where_nothing_is_compiled(monkeypatch, told):
    monkeypatch.setattr(native, "_compiling", False)
    freed_memory.keep_freed_memory()
    assert len(told) == 2


@pytest.mark.parametrize("library", [None, SimpleNamespace(keep_freed_tensors=lambda size: False)])
def test_the_c_library_keeps_it_where_the_other_memory_is_not_to_be_had(monkeypatch, told, library):
    monkeypatch.setattr(native, "_compiling", True)
    monkeypatch.setattr(native, "library", lambda *_, **__: library)
    # Without the cache: whether this process has the other memory already stays as it is.
    monkeypatch.setattr(freed_memory, "_keep_tensors", freed_memory._keep_tensors.__wrapped__)
    freed_memory.keep_freed_memory()
    assert len(told) == 2
