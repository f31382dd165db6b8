"""What the README shows, run as it stands: its files on a tiny model, and all its commands in a fresh copy."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest
import yaml
from gymnasium.utils.env_checker import check_env
from tiny_pipeline import ROOT, readme_blocks, rlhf

from envs import make_text_env
from rlhf.config.load import load_config
from rlhf.tracking.jsonl import read_series

README = (ROOT / "README.md").read_text("utf-8")
TINY_MODEL = {"architecture": {"hidden_size": 16, "layers": 1, "heads": 2}, "tokenizer": {"vocab_size": 300}}
UNTRACKED = {"wandb": {"mode": "disabled"}, "tensorboard": False, "report": False}
# The tiny model needs texts to train its tokenizer on.
SFT = {"data": {"path": "packaged:customer_service/demonstrations"}, "max_steps": 1}
ROOM = 8  # tokens of a response
SHORT = {"iterations": 1, "episodes_per_iteration": 8, "epochs": 1, "minibatches": 1}


def write_files(folder: Path) -> set[str]:
    """Write the files that the README shows, each under the name in its first line."""
    names = set()
    for block in (*readme_blocks("yaml"), *readme_blocks("python")):
        (name,) = re.findall(r"\A# (\w+\.\w+)\n", block)
        (folder / name).write_text(block, "utf-8")
        names.add(name)
    return names


def commands() -> list[list[str]]:
    """The README's lines that call `rlhf`, in words."""
    lines = "".join(readme_blocks("bash")).splitlines()
    return [shlex.split(line, comments=True) for line in lines if line.startswith("rlhf ")]


def run_small(folder: Path, name: str, **changes) -> dict[str, list[tuple[int, float]]]:
    """Run a config of the README with a tiny model and little data, and return its curves."""
    config = yaml.safe_load((folder / f"{name}.yaml").read_text("utf-8"))
    config |= {"model": TINY_MODEL, "tracking": UNTRACKED, **changes}
    config["ppo"] |= SHORT
    config["ppo"]["rollout"] = {"max_response_tokens": ROOM}
    for section in ("sft", "reward", "ppo"):
        if "data" in config.get(section, {}):
            config[section]["data"]["max_rows"] = 24
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config), "utf-8")
    rlhf("run", f"{name}.yaml", cwd=folder)
    return read_series(folder / "runs" / name)


def test_the_readme_is_for_a_first_visitor():
    assert len(README.splitlines()) <= 130
    [config] = [block for block in readme_blocks("yaml") if block.startswith("# mine.yaml")]
    assert len(config.splitlines()) - 1 <= 12
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = re.findall(r"(?m)(?:^|[`=]|cpu )make (\w+)", README)
    assert {"quickstart", "test", "study"} <= set(targets)
    assert not [target for target in targets if f"\n{target}:" not in makefile]
    links = re.findall(r"\]\(([^)]+)\)", README.replace("\n", " "))
    assert len(links) > 4
    assert not [link for link in links if not (ROOT / link).is_file()]


def test_the_configs_and_overrides_of_the_commands_are_accepted(tmp_path, monkeypatch):
    assert write_files(tmp_path) == {"mine.yaml", "my_rewards.py", "my_env.py", "guess.yaml"}
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    assert {command for _, command, *_ in commands()} == {"run"}
    found = [load_config(Path(file), overrides).config for _, _, file, *overrides in commands()]
    assert [config.name for config in found] == ["mine", "guess", "larger"]
    assert found[-1].reward.model is None


def test_the_environment_of_the_readme_is_a_gymnasium_environment(tmp_path, monkeypatch):
    write_files(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_env", raising=False)
    env = make_text_env("my_env:Guess-v0")
    try:
        check_env(env.unwrapped, skip_render_check=True)
        env.reset(options={"index": 41})  # the number is 42
        replies = [env.step(guess)[:3] for guess in ("7", "no idea", "99", " 42 ")]
        assert replies == [("Higher.", 0.0, False), ("Higher.", 0.0, False), ("Lower.", 0.0, False), ("", 1.0, True)]
    finally:
        gymnasium.registry.pop("Guess-v0", None)


@pytest.mark.slow
def test_the_config_and_the_reward_function_of_the_readme(tmp_path):
    write_files(tmp_path)
    curves = run_small(tmp_path, "mine", evaluate={"max_prompts": 4, "bootstrap_resamples": 100})
    assert {"ppo/components/reward_model", "ppo/components/polite"} <= set(curves)
    evaluation = json.loads(next((tmp_path / "runs" / "mine").rglob("evaluate.json")).read_text("utf-8"))
    assert evaluation["policies"] == ["before", "after"]


@pytest.mark.slow
def test_reward_functions_of_trl(tmp_path):
    functions = {
        "repetition": {"function": "trl.rewards:get_repetition_penalty_reward", "args": {"ngram_size": 3}},
        "length": {
            "function": "trl.rewards:get_soft_overlong_punishment",
            "args": {"max_completion_len": 64, "soft_punish_cache": 16},
        },
    }
    assert functions["repetition"]["function"] in README
    ppo = {"data": {"path": "packaged:customer_service/prompts"}, "rewards": functions}
    (tmp_path / "trl.yaml").write_text(yaml.safe_dump({"name": "trl", "ppo": ppo}), "utf-8")
    assert {f"ppo/components/{name}" for name in functions} <= set(run_small(tmp_path, "trl"))


@pytest.mark.slow
def test_the_environment_of_the_readme_trains(tmp_path):
    write_files(tmp_path)
    assert more_than_one_turn(run_small(tmp_path, "guess", sft=SFT))


@pytest.mark.slow
def test_dialogue_trains_on_the_rewards_of_its_turns(tmp_path):
    shutil.copy(ROOT / "configs" / "dialogue.yaml", tmp_path)
    assert more_than_one_turn(run_small(tmp_path, "dialogue", sft=SFT))


def more_than_one_turn(curves: dict[str, list[tuple[int, float]]]) -> bool:
    return all(tokens > ROOM for _, tokens in curves["ppo/response_tokens"])


@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("RLHF_README") != "1", reason="installs and downloads for half an hour; RLHF_README=1 runs it"
)
def test_the_commands_of_the_readme_in_a_fresh_environment(tmp_path):
    """`bash` gets the README's blocks as they stand, in a copy of this folder without any environment."""
    copy = tmp_path / "rlhf"
    left_out = shutil.ignore_patterns(
        ".git", ".venv*", ".trl*", "runs", "wandb", "*.egg-info", "__pycache__", ".*_cache"
    )
    shutil.copytree(ROOT, copy, ignore=left_out)
    write_files(copy)
    lines = "".join(readme_blocks("bash")).splitlines()
    if not reachable("huggingface.co"):  # the rest is run all the same
        lines = [line for line in lines if "HuggingFaceTB/" not in line]
    clean = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV", "RLHF_README")
    }
    clean |= {"PYTHON": getattr(sys, "_base_executable", sys.executable), "RLHF_CACHE": str(tmp_path / "cache")}
    script = "\n".join(["set -e", *lines])
    with (tmp_path / "output.txt").open("w+", encoding="utf-8") as output:
        done = subprocess.run(["bash", "-c", script], cwd=copy, env=clean, stdout=output, stderr=subprocess.STDOUT)
        output.seek(0)
        printed = output.read()
    assert done.returncode == 0, printed[-5000:]
    (shown,) = readme_blocks("text")
    for line in shown.splitlines():
        if not line.startswith("(") and "%" not in line:  # no figures
            assert line in printed
    for name in ("quickstart", "mine", "guess"):
        assert (copy / "runs" / name / "report.html").is_file()


def reachable(host: str) -> bool:
    """Whether a web server answers."""
    try:
        socket.create_connection((host, 443), timeout=10).close()
    except OSError:
        return False
    return True
