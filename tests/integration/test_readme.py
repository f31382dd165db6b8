"""What the README shows, run as it stands."""

import pytest
import yaml
from tiny_pipeline import ROOT, readme_blocks, rlhf

from rlhf.tracking.jsonl import read_series

pytestmark = pytest.mark.slow

SMALL = {
    "name": "readme",
    "model": {"architecture": {"hidden_size": 16, "layers": 1, "heads": 2}, "tokenizer": {"vocab_size": 300}},
    "tracking": {"wandb": {"mode": "disabled"}, "tensorboard": False, "report": False},
}
PPO = {
    "data": {"path": "packaged:customer_service/prompts", "max_rows": 16},
    "rollout": {"max_response_tokens": 12},
    "iterations": 1,
    "episodes_per_iteration": 8,
    "epochs": 1,
    "minibatches": 1,
}


def write_config(folder, **sections):
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**SMALL, **sections}), "utf-8")
    return path


def test_the_reward_functions_of_the_readme(tmp_path):
    (code,) = readme_blocks("python")
    (tmp_path / "my_rewards.py").write_text(code, "utf-8")
    (block,) = [text for text in readme_blocks("yaml") if "my_rewards" in text]
    rewards = yaml.safe_load(block)["ppo"]["rewards"]
    del rewards["reward_model"]  # has tests of its own; here the functions are shown
    config = write_config(tmp_path, ppo={**PPO, "rewards": rewards})
    rlhf("run", str(config), f"runs_dir={tmp_path}", cwd=tmp_path)
    curves = read_series(tmp_path / "readme")
    assert {f"ppo/components/{name}" for name in rewards} <= set(curves)
    assert len(rewards) == 3


def test_dialogue_trains_on_the_rewards_of_its_turns(tmp_path):
    config = write_config(
        tmp_path,
        sft={"data": {"path": "packaged:customer_service/demonstrations", "max_rows": 24}, "max_steps": 1},
        ppo={
            "environment": {"id": "rlhf/Dialogue-v0", "max_turns": 2},
            "rollout": {"max_response_tokens": 12},
            "iterations": 2,
            "episodes_per_iteration": 8,
            "minibatches": 2,
        },
    )
    rlhf("run", str(config), f"runs_dir={tmp_path}", cwd=tmp_path)
    tokens = [value for _, value in read_series(tmp_path / "readme")["ppo/response_tokens"]]
    assert all(value > 12 for value in tokens)  # more than one turn can hold


def test_the_commands_of_the_readme_exist():
    text = (ROOT / "README.md").read_text("utf-8")
    assert rlhf("envs").count("rlhf/") >= 2
    assert '"properties"' in rlhf("schema")
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for target in ("quickstart", "test"):
        assert f"make {target}" in text
        assert f"\n{target}:" in makefile
