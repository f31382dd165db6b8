"""The table in docs/trl-defects.md names the tests that exist."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ELSEWHERE = ROOT / "tests" / "integration" / "test_ppo_two_processes.py"


def names_in(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    return {n.name for n in nodes if isinstance(n, ast.FunctionDef) and n.name.startswith("test_")}


def test_the_document_names_every_test_and_no_other():
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "trl-defects.md").read_text("utf-8")))
    paths = [path for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]
    shown = set().union(*(names_in(path) for path in paths))
    assert shown <= named
    assert named - shown <= names_in(ELSEWHERE)


def test_every_test_says_which_trainer_it_is_about():
    for path in Path(__file__).parent.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and "trl" in node.name.split("_"):
                assert "in_trl" in {getattr(mark, "id", "") for mark in node.decorator_list}, node.name
