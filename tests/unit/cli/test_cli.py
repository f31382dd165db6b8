"""The command line: what it calls, its exit codes, and what it does not import."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rlhf.run.start
from rlhf.cli.app import app
from rlhf.config.json_schema import schema
from rlhf.errors import StageError
from rlhf.tracking import rollouts, terminal

CONFIG = "model: {path: org/base}\nsft: {data: d.jsonl}\n"
COMMANDS = ("run", "sft", "reward", "ppo", "evaluate", "study", "probe", "inspect", "schema", "envs", "metrics")
COMMANDS += ("rewards",)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    (tmp_path / "my.yaml").write_text(CONFIG, encoding="utf-8")
    return tmp_path


@pytest.fixture
def call(folder: Path):
    """Runs a command in this process."""
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list:
    """What was started instead of a pipeline."""
    calls: list = []
    monkeypatch.setattr(rlhf.run.start, "start", lambda loaded, only, _: calls.append((loaded.config, only)) or 0)
    return calls


def in_a_process(*arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """Runs `rlhf` as a program, then `code`."""
    program = (
        f"import sys; sys.argv = ['rlhf', *{list(arguments)!r}]\n"
        "from rlhf.cli.app import main\n"
        "try: main()\n"
        "except SystemExit as end: status = end.code\n"
        f"{code}\n"
        "sys.exit(status)"
    )
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", ["run", "sft", "reward", "ppo", "evaluate"])
def test_a_command_loads_the_config_and_starts_its_stage(command: str, call, started):
    result = call(command, "my.yaml", "sft.epochs=3", "seed=4", "--processes", "2", "--zero", "3")
    assert result.exit_code == 0, result.output
    [(config, only)] = started
    assert only == (None if command == "run" else command)
    assert (config.sft.epochs, config.seed) == (3.0, 4)
    assert (config.distributed.processes, config.distributed.zero) == (2, 3)


def test_a_mistake_of_the_user_is_one_message_and_exit_code_2(call):
    result = call("run", "my.yaml", "sft.epoch=3")
    assert result.exit_code == 2
    assert result.stderr == (
        "Error: my.yaml has 1 mistake:\n  override: sft.epoch: unknown key; did you mean epochs?\n"
    )
    assert result.stdout == ""


def test_a_missing_stage_is_exit_code_2(call, folder: Path):
    (folder / "d.jsonl").touch()
    result = call("ppo", "my.yaml")
    assert result.exit_code == 2
    assert result.stderr == "Error: The config has no section ppo: add it, or choose another command.\n"


def test_a_bug_is_exit_code_1_and_asks_for_a_report(call, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rlhf.run.start, "start", lambda *_: 1 / 0)
    result = call("run", "my.yaml")
    assert result.exit_code == 1
    assert result.stderr == (
        "Internal error: ZeroDivisionError: division by zero\n"
        "This is a bug. Run again with --debug for the traceback, and report it.\n"
    )


@pytest.mark.parametrize(("error", "code"), [(StageError("no"), 2), (ValueError("no"), 1)])
def test_debug_shows_the_traceback(error: Exception, code: int, call, monkeypatch: pytest.MonkeyPatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(rlhf.run.start, "start", fail)
    result = call("run", "my.yaml", "--debug")
    assert result.exit_code == code
    assert "Traceback (most recent call last)" in result.stderr
    assert "raise error" in result.stderr


def test_the_other_processes_say_who_they_are(call, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert call("run", "my.yaml", "x=1").stderr.startswith("process 1: Error: my.yaml has 1 mistake:\n")


def test_the_exit_code_of_started_processes_is_passed_on(call, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rlhf.run.start, "start", lambda *_: 3)
    assert call("run", "my.yaml").exit_code == 3


@pytest.mark.parametrize("arguments", [("run",), ("rnu", "my.yaml"), ("run", "my.yaml", "--zero", "4"), ("run", "--x")])
def test_wrong_usage_is_exit_code_2(arguments: tuple[str, ...], call):
    assert call(*arguments).exit_code == 2


def test_schema_prints_the_json_schema(call):
    assert json.loads(call("schema").stdout) == schema()


def test_envs_lists_the_environments_of_the_project(call):
    out = call("envs").stdout
    assert "rlhf/Prompts-v0  (one turn, " in out
    assert "rlhf/Dialogue-v0  (several turns, " in out
    assert "Ant-v2" not in out


def test_envs_check_says_what_is_wrong_and_ends_with_2_if_anything_is(call):
    right = call("envs", "check", "rlhf/Dialogue-v0", "max_turns=2", "--episodes", "3")
    assert right.exit_code == 0, right.output
    assert "ok     3 random episodes: 6 steps" in right.output
    wrong = call("envs", "check", "rlhf/Dialogue-v0", "max_turns=zero")
    assert wrong.exit_code == 2
    assert "wrong  max_turns is 'zero'" in wrong.output
    assert "write KEY=VALUE" in call("envs", "check", "rlhf/Dialogue-v0", "max_turns").output


def test_probe_refuses_what_is_no_probe(call):
    result = call("probe", "--only", "tokn")
    assert result.exit_code == 2
    assert "there is no probe 'tokn'; allowed: token, copy, noise, two_turns, delay" in result.output


def test_rewards_lists_the_built_in_functions_with_their_arguments(call):
    out = call("rewards").stdout
    assert "length(minimum_words: int, maximum_words: int)\n    0 inside a band of lengths" in out


def test_inspect_builds_the_page(call, folder: Path):
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text("name: run\n", encoding="utf-8")
    result = call("inspect", "run")
    assert result.exit_code == 0, result.output
    assert Path(result.stdout.strip()) == Path("run/report.html")
    assert (folder / "run" / "report.html").is_file()
    assert call("inspect", "nowhere").exit_code == 2


def test_inspect_prints_the_worst_response_and_the_token_that_was_punished(call, folder: Path):
    tokens = [{"id": 1, "text": " fine", "reward": 0.25}, {"id": 2, "text": "<bye>", "reward": -2.0}]
    for iteration in (1, 2):
        rows = [{"index": n, "response": f"r{n}", "score": float(n - iteration), "tokens": tokens} for n in (4, 7)]
        rollouts.write(folder / "run", rollouts.typed_rows(rows, iteration), iteration)
    (folder / "run" / "config.yaml").write_text("name: run\n", encoding="utf-8")
    shown = call("inspect", "run", "--iteration", "2", "--worst", "1").stdout
    assert "Iteration 2, prompt 4: score +2" in shown
    [punished] = [line for line in shown.splitlines() if line.startswith(">")]
    assert "'<bye>'" in punished
    assert "\N{MINUS SIGN}2" in punished
    assert not (folder / "run" / "report.html").exists()
    result = call("inspect", "run", "--iteration", "3", "--worst", "1")
    assert result.exit_code == 2
    assert "it has iterations 1 to 2" in result.output


def test_help_names_all_commands_and_imports_nothing_heavy():
    done = in_a_process("--help", code="print('heavy', sorted({'torch', 'transformers', 'trl'} & set(sys.modules)))")
    assert done.returncode == 0, done.stderr
    assert all(f" {command} " in done.stdout for command in COMMANDS)
    assert done.stdout.splitlines()[-1] == "heavy []"


def test_a_config_error_imports_nothing_heavy(folder: Path):
    code = "print('heavy', sorted({'torch', 'transformers', 'trl', 'datasets'} & set(sys.modules)))"
    done = in_a_process("run", "my.yaml", "sft.epoch=3", code=code)
    assert done.returncode == 2
    assert "did you mean epochs?" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == "heavy []\n"


def test_telemetry_is_off_unless_the_user_wants_it(monkeypatch: pytest.MonkeyPatch):
    code = "import os; print(os.environ['HF_HUB_DISABLE_TELEMETRY'], os.environ.get('HF_HUB_OFFLINE'))"
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert in_a_process("--help", code=code).stdout.splitlines()[-1] == "1 None"
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
    assert in_a_process("--help", code=code).stdout.splitlines()[-1] == "0 None"


def test_modules_of_the_current_folder_can_be_named(folder: Path):
    (folder / "my_rewards.py").write_text("VALUE = 7\n", encoding="utf-8")
    program = (
        "import sys; sys.path = [entry for entry in sys.path if entry]; sys.argv = ['rlhf', '--help']\n"
        "from rlhf.cli.app import main\n"
        "try: main()\n"
        "except SystemExit: import my_rewards; print(my_rewards.VALUE)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["7"], done.stderr


def test_the_package_is_the_command_too(folder: Path):
    environment = {**os.environ, "COLUMNS": "80"}
    command = [sys.executable, "-m", "rlhf", "run", "nothing.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: nothing.yaml: no such config file")


def test_version_and_short_help(call):
    assert re.fullmatch(r"rlhf \d+\.\d+\.\d+\n", call("--version").stdout)
    assert call("run", "-h").exit_code == 0
    assert "--json" in call("run", "-h").stdout


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("--ppo.learning_rate", "1e-5"), "ppo.learning_rate=1e-5."),
        (("--ppo.learning-rate=1e-5",), "ppo.learning_rate=1e-5."),
        (("--seed",), "seed=VALUE, with its section in front"),
    ],
)
def test_a_key_that_is_given_like_an_option_gets_a_hint(arguments: tuple[str, ...], hint: str, call):
    result = call("run", "my.yaml", *arguments)
    assert result.exit_code == 2
    said = " ".join(result.stderr.replace("│", " ").split())
    assert f"Keys of the configuration are given without dashes: {hint}" in said


def test_a_folder_in_place_of_a_config_gets_a_hint(call, folder: Path):
    result = call("run", str(folder))
    assert result.exit_code == 2
    assert result.stderr == f"Error: {folder} is a folder, and a config is a file. Name one in it: {folder}/my.yaml.\n"


@pytest.mark.parametrize(
    ("option", "mode"), [("--quiet", "quiet"), ("-q", "quiet"), ("--json", "json"), (None, "normal")]
)
def test_what_the_terminal_shows_is_chosen(option: str | None, mode: str, call, started):
    assert call("run", "my.yaml", *([option] if option else [])).exit_code == 0
    assert terminal._mode == mode
    terminal.use("normal")


def test_metrics_prints_the_page(call):
    assert call("metrics").stdout == (Path(__file__).parents[3] / "docs" / "metrics.md").read_text("utf-8")


def test_completion_can_be_installed(call):
    assert "--install-completion" in call("--help").stdout
