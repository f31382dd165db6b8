"""The list of faults cannot rot: each one fits the source as it stands, is a program, and names tests that exist."""

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from mutants.fault import FaultError
from mutants.faults import FAULTS

ROOT = Path(__file__).parents[3]
# Where a wrong result would come from; the others hold types, names and messages.
FILES = {
    "actor_critic", "advantages", "batch", "cache", "checkpoint", "clipping", "config", "critics", "kl", "logprobs",
    "losses", "masked", "metrics", "noise", "rollout", "rollout_policy", "sampler", "scoring", "setup",
    "token_dataset", "token_rewards", "trainer", "update", "models/attention", "models/blocks", "models/decoding",
    "models/fast_trunk", "models/formulas", "models/freed_memory", "models/fused", "models/kernels", "models/native",
    "models/native_attention", "models/native_blocks", "models/native_decoding", "models/native_kernels",
    "models/packed", "models/precision", "models/products", "models/projections", "models/vectors",
}  # fmt: skip


@cache
def source(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


@cache
def functions(path: str) -> set[str]:
    return {node.name for node in ast.parse(source(path)).body if isinstance(node, ast.FunctionDef)}


def program(path: str, text: str) -> str:
    """What a compiler makes of a file; of C++ this only leaves out comments and spaces."""
    return ast.dump(ast.parse(text)) if path.endswith(".py") else "".join(re.sub("//.*", "", text).split())


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_fits_the_source_and_is_a_program(fault):
    before = source(fault.path)
    after = fault.mutated(before)
    assert program(fault.path, after) != program(fault.path, before)  # more than a comment or a layout has changed


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_tests_that_a_fault_names_exist(fault):
    assert fault.first
    for test in fault.first_tests:
        path, _, function = test.partition("::")
        assert not function or function in functions(path)


def test_there_are_many_faults_everywhere_and_no_two_are_one():
    assert len(FAULTS) >= 40
    assert max(Counter(fault.name for fault in FAULTS).values()) == 1
    assert max(Counter((fault.file, fault.old, fault.new) for fault in FAULTS).values()) == 1
    assert {fault.file.rpartition(".")[0] for fault in FAULTS} == FILES


def test_a_fault_whose_source_has_moved_on_says_so():
    fault = FAULTS[0]
    with pytest.raises(FaultError, match=rf"{fault.name}.* stands 0 times in {fault.path}"):
        fault.mutated("something else")
    with pytest.raises(FaultError, match="stands 2 times"):
        fault.mutated(source(fault.path) + fault.old)


def test_a_fault_is_taken_out_again(tmp_path):
    fault = FAULTS[0]
    copy = tmp_path / fault.path
    copy.parent.mkdir(parents=True)
    copy.write_text(source(fault.path), encoding="utf-8")
    restore = fault.apply(tmp_path)
    assert copy.read_text(encoding="utf-8") == fault.mutated(source(fault.path))
    restore()
    assert copy.read_text(encoding="utf-8") == source(fault.path)
