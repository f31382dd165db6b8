"""What a stage read and made; and the table at the end of a run in a narrow terminal."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from rlhf.config.schema import Config
from rlhf.files.run_folder import RunFolder
from rlhf.run.fingerprint import upstream_of
from rlhf.run.lineage import lineage
from rlhf.run.summary import print_comparison


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "d.jsonl").touch()
    data = {"sources": [{"path": str(tmp_path / "d.jsonl")}]}
    return Config.model_validate(
        {
            "model": {"path": "org/base"},
            "sft": {"data": data},
            "reward": {"data": {"sources": [{"path": "org/pairs"}]}},
            "ppo": {"data": data, "rewards": {"reward_model": {}}},
        }
    )


def names(config: Config, stage: str, root: Path):
    read, made = lineage(config, RunFolder(root), stage, upstream_of(config, stage))
    return [(a.name, a.kind, a.path) for a in read], [(a.name, a.kind, a.path) for a in made]


def test_models_and_data_join_the_stages(config: Config, tmp_path: Path):
    root = tmp_path / "run"
    assert names(config, "sft", root) == (
        [("base-model", "model", None), ("sft-data-d", "dataset", tmp_path / "d.jsonl")],
        [("sft", "model", root / "sft")],
    )
    assert names(config, "reward", root)[0] == [("sft", "model", root / "sft"), ("reward-data-pairs", "dataset", None)]
    assert [name for name, *_ in names(config, "ppo", root)[0]] == ["sft", "reward", "ppo-data-d"]


def test_a_narrow_terminal_cuts_no_name(tmp_path: Path):
    entry = {"before": -0.5, "after": 0.25, "difference": 0.75, "interval": [0.1, 1.4]}
    name = "components/answers_the_question_politely"
    path = tmp_path / "evaluate.json"
    path.write_text(json.dumps({"policies": ["before", "after"], "prompts": 3, "metrics": {name: entry}}), "utf-8")
    console = Console(file=io.StringIO(), width=60, soft_wrap=True)
    print_comparison(console, path)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 60
    first = [line.split("│")[1].strip() for line in lines if line.count("│") > 3]
    assert "".join(first) == name
