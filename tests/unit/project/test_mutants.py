"""The list of faults cannot rot: each one fits the source as it stands, is a program, and names tests that exist."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest
from mutants.fault import Fault, FaultError, functions, node_ids, sources
from mutants.faults import FAULTS

ROOT = Path(__file__).parents[3]


def program(path: Path, text: str) -> str:
    """What a compiler makes of a file; of C++ this only leaves out comments and spaces."""
    return ast.dump(ast.parse(text)) if path.suffix == ".py" else "".join(re.sub("//.*", "", text).split())


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_fits_the_source_is_a_program_and_names_its_tests(fault):
    path = fault.path(ROOT)
    after = fault.mutated(path)
    assert program(path, after) != program(path, path.read_text("utf-8"))  # more than a comment or a layout has changed
    assert fault.first
    assert node_ids(ROOT, fault.first)


def test_there_are_many_faults_and_no_two_are_one():
    assert len(FAULTS) >= 150
    assert max(Counter(fault.name for fault in FAULTS).values()) == 1
    assert max(Counter((fault.function, fault.old, fault.new) for fault in FAULTS).values()) == 1


def test_functions_are_found_in_both_languages(tmp_path):
    python, cpp = tmp_path / "a.py", tmp_path / "b.cpp"
    python.write_text("class A:\n    @property\n    def f(self):\n        return 1\n\n\ndef g():\n    return 2\n")
    cpp.write_text("static int f(int x) {\n  if (x) { return 1; }\n  return 2;\n}\nint g() { return 3; }\n")
    assert {name: body.count("return") for name, body in functions(python).items()} == {
        "a": 2, "a.A": 1, "a.A.f": 1, "a.g": 1,
    }  # fmt: skip
    assert {name: body.count("return") for name, body in functions(cpp).items()} == {
        "b.cpp": 3,
        "b.cpp.f": 2,
        "b.cpp.g": 1,
    }


def test_a_fault_whose_source_has_moved_on_says_so():
    fault = FAULTS[0]
    with pytest.raises(FaultError, match=r"0 functions are called nowhere\.nothing"):
        Fault("x", "nowhere.nothing", "a", "b", "").path(ROOT)
    gone = Fault(fault.name, fault.function, "something else", "b", "")
    with pytest.raises(FaultError, match=rf"{fault.name}.* stands 0 times in {fault.function}"):
        gone.mutated(gone.path(ROOT))


def test_a_fault_is_taken_out_again(tmp_path):
    fault = FAULTS[0]
    source = fault.path(ROOT)
    copy = tmp_path / source.relative_to(ROOT)
    copy.parent.mkdir(parents=True)
    copy.write_text(source.read_text("utf-8"), encoding="utf-8")
    restore = fault.apply(tmp_path)
    assert copy.read_text("utf-8") == fault.mutated(source)
    restore()
    assert copy.read_text("utf-8") == source.read_text("utf-8")
    assert copy in sources(tmp_path)
