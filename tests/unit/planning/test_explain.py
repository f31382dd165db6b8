"""`rlhf ppo CONFIG --explain`: its numbers, its reasons, and what it leaves alone."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from rlhf.cli.app import app
from rlhf.config.ppo import PPOSectionConfig
from rlhf.config.schema import Config
from rlhf.planning.arithmetic import BatchArithmetic, of_section
from rlhf.planning.explain import count_prompts, explain

CONFIG = {
    "model": {"path": "nowhere/no-such-model"},
    "ppo": {
        "data": {"path": "packaged:customer_service/demonstrations", "validation_fraction": 0.0, "max_rows": 40},
        "rewards": {"length": {"function": "length", "args": {"minimum_words": 1, "maximum_words": 9}}},
        "rollout": {"max_prompt_tokens": 60, "max_response_tokens": 40},
        "samples_per_prompt": 2, "iterations": 5, "episodes_per_iteration": 32, "epochs": 3, "minibatches": 2,
        "microbatch_tokens": 400,
    },
}  # fmt: skip


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Explains the configuration above and returns the table's numbers by name, in order."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("RANK", raising=False)
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(CONFIG), encoding="utf-8")

    def numbers(*arguments: str) -> dict[str, str]:
        result = CliRunner().invoke(app, ["ppo", "my.yaml", "--explain", *arguments])
        assert result.exit_code == 0, result.output
        names = [line.name for line in explain(of_section(PPOSectionConfig(), 1, 1))]
        rows = {name: line for line in result.stdout.splitlines() for name in names if line.strip().startswith(name)}
        return {name: row.strip().removeprefix(name).strip().split("   ")[0] for name, row in rows.items()}

    return numbers


def test_the_numbers_of_a_configuration(call):
    assert list(call().items()) == [
        ("prompts per iteration", "16"),
        ("responses per iteration", "32"),
        ("responses per process", "32"),
        ("minibatches per epoch", "2"),
        ("responses per minibatch", "16"),
        ("tokens per microbatch", "400"),
        ("tokens per conversation", "2 to 100"),
        ("microbatches per minibatch", "1 to 4"),
        ("optimizer steps per iteration", "6"),
        ("optimizer steps in the run", "30"),
        ("passes over the prompts", "2.00"),
    ]


def test_overrides_and_processes_count(call):
    numbers = call("ppo.minibatches=4", "ppo.iterations=2", "ppo.data.max_rows=64", "--processes", "4")
    assert (numbers["responses per process"], numbers["responses per minibatch"]) == ("8", "8")
    assert (numbers["optimizer steps per iteration"], numbers["optimizer steps in the run"]) == ("12", "24")
    assert numbers["microbatches per minibatch"] == "1"
    assert numbers["passes over the prompts"] == "0.50"


def test_it_writes_nothing(call, tmp_path: Path):
    call()
    assert [path.name for path in tmp_path.iterdir()] == ["my.yaml"]


def test_it_imports_no_torch(call):
    code = (
        "import sys; sys.argv = ['rlhf', 'ppo', 'my.yaml', '--explain']\n"
        "from rlhf.cli.app import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code in (0, None), end.code\n"
        "print('heavy', sorted({'torch', 'transformers', 'trl'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy []"
    assert "iterations x steps per iteration = 5 x 6 (ppo.iterations)" in done.stdout


def test_every_line_names_a_key_that_exists_and_a_reason():
    for line in explain(of_section(PPOSectionConfig(), 1, 100)):
        assert line.reason
        for key in line.keys.split(", "):
            section, *path = key.split(".")
            assert section in ("ppo", "distributed")
            assert section == "distributed" or path[0] in PPOSectionConfig.model_fields


@pytest.mark.parametrize(("prompts", "reason"), [(1000, "never seen"), (160, "answered anew"), (3, "answered anew")])
def test_the_last_line_says_what_happens_to_the_prompts(prompts: int, reason: str):
    section = PPOSectionConfig(iterations=5, episodes_per_iteration=32)
    assert reason in list(explain(of_section(section, 1, prompts)))[-1].reason


def test_without_a_number_of_prompts_there_is_no_line_about_passes():
    lines = [line.name for line in explain(of_section(PPOSectionConfig(), 1, None))]
    assert "passes over the prompts" not in lines
    assert lines[-1] == "optimizer steps in the run"


def test_prompts_are_counted_wherever_they_are():
    def of(ppo, **sections):
        scored = {"rewards": {"length": {"function": "length"}}, **ppo}
        return Config.model_validate({"model": {"path": "m"}, "ppo": scored, **sections})

    rows = {"environment": {"kwargs": {"prompts": ["one", "two", "three"]}}}
    assert count_prompts(of(rows)) == 3
    assert count_prompts(of({"environment": {"id": "rlhf/Dialogue-v0"}})) == 24
    assert count_prompts(of({"environment": {"id": "rlhf/Dialogue-v0"}}, evaluate={})) == 19  # 5 of them are held out
    data = {"data": {"path": "packaged:customer_service/prompts", "max_rows": 20, "validation_fraction": 0.0}}
    assert count_prompts(of(data)) == 20


def test_mistakes_are_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call):
    (tmp_path / "sft.yaml").write_text("model: {path: org/base}\nsft: {data: d.jsonl}\n", encoding="utf-8")
    result = CliRunner().invoke(app, ["ppo", "sft.yaml", "--explain"])
    assert (result.exit_code, result.stderr) == (
        2,
        "Error: The config has no section ppo: add it, or choose another command.\n",
    )
    result = CliRunner().invoke(app, ["ppo", "my.yaml", "--explain", "--processes", "3"])
    assert result.exit_code == 2
    assert "episodes_per_iteration 32" in result.stderr


def test_the_table_is_of_the_numbers_that_the_run_asserts():
    numbers = of_section(PPOSectionConfig.model_validate(CONFIG["ppo"]), 1, 40)
    assert isinstance(numbers, BatchArithmetic)
    by_name = {line.name: line.number for line in explain(numbers)}
    assert by_name["optimizer steps in the run"] == str(numbers.run_steps)
