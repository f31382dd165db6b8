"""One policy on any environment, without training: numbers of the responses, groups, and what is written."""

import json

import numpy as np
import pytest
from tiny_run import PROMPTS, run_config, save_policy, save_prompts, save_run

from rlhf.evaluation.table import print_policy
from rlhf.stages.evaluate_policy import evaluate_policy, write_result


@pytest.fixture
def folder(tmp_path):
    return save_run(tmp_path / "run")


@pytest.fixture
def data(tmp_path):
    return save_prompts(tmp_path / "prompts.jsonl")


def rewards(tmp_path, body):
    file = tmp_path / "own.py"
    file.write_text(f"def own(prompts, completions, **columns):\n    return {body}\n")
    return {"own": {"function": f"{file}:own"}}


def test_score_and_pass_of_several_samples(tmp_path, data, folder):
    ppo = {"data": {"path": str(data)}, "rewards": rewards(tmp_path, "[float('e' in c) for c in completions]")}
    config = run_config(data, ppo=ppo, evaluate={"data": {"path": str(data)}, "samples_per_prompt": 4})
    result = evaluate_policy(config, str(folder.ppo), folder)
    assert (result["prompts"], result["asked"], len(result["responses"])) == (9, "held-out prompts", 36)
    said = [[row["messages"][-1]["content"] for row in result["responses"] if row["index"] == i] for i in range(9)]
    right = np.array([["e" in text for text in row] for row in said])
    metrics = result["metrics"]
    assert metrics["score"]["value"] == metrics["avg@4"]["value"] == pytest.approx(right.mean())
    assert metrics["pass@4"]["value"] == pytest.approx(right.any(1).mean())
    assert metrics["components/own"]["value"] == pytest.approx(right.mean())
    assert result["groups"] is None


def test_the_runs_own_reward_model_may_score(data, folder):
    config = run_config(data, evaluate={"data": {"path": str(data)}, "success_score": None})
    result = evaluate_policy(config, str(folder.sft), folder)
    assert {"score", "components/reward_model", "turns"} <= set(result["metrics"])
    assert not any("@" in name for name in result["metrics"])


def test_another_policy_answers_otherwise_and_the_same_one_alike(tmp_path, data, folder):
    config = run_config(data)
    first, again, other = (
        evaluate_policy(config, str(path), folder)
        for path in (folder.sft, save_policy(tmp_path / "copy", 0), folder.ppo)
    )
    assert first["responses"] == again["responses"] != other["responses"]


def test_groups_by_column_and_by_data_source(tmp_path, folder):
    rows = [{"prompt": prompt, "topic": "odd" if i % 2 else "even"} for i, prompt in enumerate(PROMPTS)]
    files = []
    for name, part in (("one", rows[:5]), ("two", rows[5:])):
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in part), "utf-8")
    sources = {"sources": [{"path": str(file)} for file in files]}
    ppo = {"data": {"path": str(files[0])}, "rewards": rewards(tmp_path, "[1.0] * len(prompts)")}
    by_source = evaluate_policy(run_config(files[0], ppo=ppo, evaluate={"data": sources}), str(folder.ppo), folder)
    assert {name: group["score"]["prompts"] for name, group in by_source["groups"].items()} == {
        str(files[0]): 5, str(files[1]): 4,
    }  # fmt: skip
    by_topic = run_config(files[0], ppo=ppo, evaluate={"data": sources, "by": "topic"})
    groups = evaluate_policy(by_topic, str(folder.ppo), folder)["groups"]
    assert {name: group["score"]["prompts"] for name, group in groups.items()} == {"even": 5, "odd": 4}


def test_several_environments_are_told_apart(data, folder):
    environments = [
        {"id": "rlhf/ProbeCopy-v0", "test_fraction": 0.5},
        {"id": "rlhf/ProbeTwoTurns-v0", "name": "twice", "test_fraction": 0.0},
    ]
    ppo = {"data": None, "rewards": {}, "environments": environments}
    ppo["rollout"] = {"max_response_tokens": 4, "max_prompt_tokens": 64}
    result = evaluate_policy(run_config(data, ppo=ppo, evaluate={"data": None}), str(folder.ppo), folder)
    assert result["asked"] == ("2 held-out rows of rlhf/ProbeCopy-v0; 4 rows of twice that training draws from, too")
    assert {name: group["turns"]["value"] for name, group in result["groups"].items()} == {
        "rlhf/ProbeCopy-v0": 1.0, "twice": 2.0,
    }  # fmt: skip
    assert sorted({row["index"] for row in result["responses"]}) == list(range(6))


def test_it_is_written_and_printed(tmp_path, data, folder):
    from rich.console import Console

    result = evaluate_policy(run_config(data, evaluate={"data": {"path": str(data)}, "by": "topic"}), str(folder.ppo),
                             folder)  # fmt: skip
    write_result(result, tmp_path / "scores.json")
    assert json.loads((tmp_path / "scores.json").read_text("utf-8"))["metrics"] == result["metrics"]
    with (tmp_path / "table.txt").open("w", encoding="utf-8") as file:
        print_policy(Console(file=file, width=150, markup=False), result)
    text = (tmp_path / "table.txt").read_text("utf-8")
    assert "9 held-out prompts" in text
    assert "95% interval" in text
    assert "parcel" in text
