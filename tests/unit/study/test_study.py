"""The study with stubs for its runs: which runs it asks for, and what it makes of what they leave."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_run import PROMPTS, make_tokenizer, save_policy, save_reward_model

from reward_models.chat import encode_dialogue
from reward_models.scalar import ScalarRewardModel
from rlhf.config.load import load_config
from rlhf.errors import StageError
from rlhf.run.pipeline import folder_of
from rlhf.study import study
from rlhf.study.judge import component_values, judge_values, last_response, pair_accuracy
from rlhf.study.numbers import JudgedRun, pooled
from rlhf.study.study import run_study

CONFIG = """
name: demo
runs_dir: {root}/runs
model:
  path: {root}/base
  num_layers: 1
sft:
  data: {root}/demonstrations.jsonl
reward:
  data: {root}/preferences.jsonl
ppo:
  data: {root}/prompts.jsonl
  rewards:
    reward_model: {{}}
evaluate:
  data: {root}/prompts.jsonl
  bootstrap_resamples: 200
"""


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(root=tmp_path))
    pairs = [
        {"prompt": f"{prompt} {word}", "chosen": f"It is {word}.", "rejected": "No."}
        for prompt in PROMPTS
        for word in ("near", "far", "lost")
    ]
    (tmp_path / "preferences.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return path


def evaluation(seed):
    """What the evaluate stage would leave: the PPO policy gains 1 by the reward model on every prompt."""
    rng = np.random.default_rng(seed)
    responses = []
    for i, prompt in enumerate(PROMPTS):
        row = {"prompt": prompt, "index": i, "sample_index": 0}
        score = float(rng.normal())
        for policy, gain in (("before", 0.0), ("after", 1.0)):
            messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": f"{policy} {i} {seed}"}]
            row[policy] = {"messages": messages, "score": 9.0, "components": {"reward_model": score + gain}}
        responses.append(row)
    sides = {"before": 0.5, "after": 0.25, "difference": -0.25, "interval": None}
    metrics = dict.fromkeys(["perplexity", "distinct_2", "stopped_share"], sides)
    metrics["kl"] = {"before": 0.0, "after": 2.0 + seed, "difference": 2.0 + seed, "interval": [1.0, 3.0]}
    metrics["response_tokens"] = {"before": 10.0, "after": 15.0, "difference": 5.0, "interval": [4.0, 6.0]}
    win_rate = {"value": 0.75, "interval": [0.5, 1.0]}
    content = {"prompts": len(PROMPTS), "samples_per_prompt": 1, "metrics": metrics, "win_rate": win_rate}
    return {**content, "responses": responses}


@pytest.fixture
def started(monkeypatch):
    """Stands in for the pipeline: notes what it was asked to run, and leaves what the run would."""
    runs = []

    def start(loaded, only, arguments):
        runs.append((loaded.config, only, arguments))
        folder = folder_of(loaded.config)
        folder.root.mkdir(parents=True)
        save_reward_model(folder.reward, loaded.config.seed % 1000 + 20 * (loaded.config.ppo is None))
        if loaded.config.ppo is not None:
            save_policy(folder.sft, 0)
            folder.evaluate.write_text(json.dumps(evaluation(loaded.config.seed)))
        return 0

    monkeypatch.setattr(study, "start", start)
    return runs


def test_runs_of_a_study(config, started, tmp_path):
    run_study(config, ["reward.epochs=2"], [3, 7])
    configs = [run for run, _, _ in started]
    assert [run.name for run in configs] == ["seed3", "seed3-judge", "seed7", "seed7-judge"]
    assert {run.runs_dir for run in configs} == {f"{tmp_path}/runs/demo-study"}
    assert [run.reward.data.subset for run in configs] == ["first_half", "second_half"] * 2
    assert [run.seed for run in configs][::2] == [3, 7]
    assert len({run.seed for run in configs}) == 4
    assert {run.reward.epochs for run in configs} == {2}
    own, judge = configs[:2]
    assert own.model.num_layers == 1
    assert judge.sft is judge.ppo is judge.evaluate is None
    assert judge.model.path == str(folder_of(own).sft)
    assert judge.model.num_layers is None
    for run, only, arguments in started:
        assert only is None
        command, path, *overrides = arguments  # what other processes of the run would be started with
        assert command == "run"
        assert load_config(Path(path), overrides).config == run


def test_numbers_of_a_study(config, started, tmp_path):
    page = run_study(config, [], [0, 1])
    content = json.loads((page.parent / "study.json").read_text())
    first = content["runs"][0]
    assert first["reward_model"]["difference"] == pytest.approx(1.0)
    assert first["reward_model"]["interval"] == pytest.approx([1.0, 1.0])
    assert first["win_rate"] == {"value": 1.0, "interval": [1.0, 1.0]}
    assert first["length_ratio"] == pytest.approx(1.5)
    assert first["distinct_2"] == {"before": 0.5, "after": 0.25}
    judge = ScalarRewardModel.from_folder(tmp_path / "runs/demo-study/seed0-judge/reward")
    scores = {
        side: judge.score(PROMPTS, [f"{side} {i} 0" for i in range(len(PROMPTS))]) for side in ("before", "after")
    }
    assert first["judge"]["difference"] == pytest.approx(np.mean(scores["after"] - scores["before"]), rel=1e-9)
    assert first["judge_win_rate"]["value"] == pytest.approx(np.mean(scores["after"] > scores["before"]))
    both = [run["judge"]["difference"] for run in content["runs"]]
    assert content["pooled"]["judge"]["difference"] == pytest.approx(np.mean(both))
    assert content["pooled"]["judge"]["standard_deviation"] == pytest.approx(np.std(both, ddof=1))
    assert content["pooled"]["reward_model"]["seeds_above_zero"] == 2
    assert content["pooled"]["kl"] == pytest.approx(2.5)


def test_page_of_a_study(config, started):
    text = run_study(config, [], [0, 1]).read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 5  # header, rule, two seeds, pooled
    assert len({row.count("|") for row in rows}) == 1
    assert "+1 (+1 to +1)" in rows[2]
    assert "100% (100 to 100%)" in rows[2]
    assert "2 of 2 seeds" in text
    assert "before 0 0" in text
    assert "after 7 0" in text


def test_judge_is_tested_on_the_half_that_it_was_not_fitted_on(config, started, tmp_path):
    run_study(config, [], [0])
    loaded = load_config(config, ["reward.data.subset=first_half"]).config
    judge = ScalarRewardModel.from_folder(tmp_path / "runs/demo-study/seed0-judge/reward")
    metrics = pair_accuracy(judge, loaded.reward, loaded.reward.data)
    content = json.loads((tmp_path / "runs/demo-study/study.json").read_text())
    accuracy = {"value": metrics.accuracy, "interval": [metrics.accuracy_low, metrics.accuracy_high]}
    assert content["runs"][0]["judge_accuracy"] == accuracy
    other = loaded.reward.data.model_copy(update={"subset": "second_half"})
    assert metrics.pairs + pair_accuracy(judge, loaded.reward, other).pairs == 3 * len(PROMPTS)


def test_without_an_sft_stage_the_judge_starts_from_the_configured_model(config, started, tmp_path):
    run_study(config, ["sft=null"], [0])
    own, judge = (run for run, _, _ in started)
    assert judge.model == own.model


@pytest.mark.parametrize("seeds", [[], [1, 1], [-1]])
def test_bad_seeds(config, started, seeds):
    with pytest.raises(StageError, match="seeds"):
        run_study(config, [], seeds)


def test_missing_sections(config, started):
    with pytest.raises(StageError, match="add ppo, evaluate to the config"):
        run_study(config, ["ppo=null", "evaluate=null"], [0])
    assert started == []


def test_a_run_that_fails_ends_the_study(config, monkeypatch):
    monkeypatch.setattr(study, "start", lambda *arguments: 1)
    with pytest.raises(StageError, match="run seed0 of the study failed with exit code 1"):
        run_study(config, [], [0])


def test_conversations_are_scored_up_to_their_last_response(tmp_path):
    judge = ScalarRewardModel.from_folder(save_reward_model(tmp_path / "judge", 3))
    said = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, what is it?"}]
    longer = [*said, {"role": "user", "content": "It is late."}, {"role": "assistant", "content": "I see."}]
    closing = [*longer, {"role": "user", "content": "Bye."}]
    scores = judge_values(judge, [{"after": {"messages": messages}} for messages in (said, longer, closing)], "after")
    assert last_response(closing) == "I see."
    assert scores[1] == pytest.approx(scores[2], abs=1e-6)
    assert abs(scores[0] - scores[1]) > 1e-4
    tokens = encode_dialogue(make_tokenizer(), longer)
    expected = judge.normalisation.apply(judge._forward([tokens]))[0]
    assert scores[1] == pytest.approx(expected, abs=1e-5)


def test_components_of_an_evaluation():
    rows = [
        {"after": {"score": 1.0, "components": {"rule": None}}},
        {"after": {"score": None, "components": {"rule": 2.0}}},
    ]
    np.testing.assert_array_equal(component_values(rows, "after", "rule"), [np.nan, 2.0])
    np.testing.assert_array_equal(component_values(rows, "after", "score"), [1.0, np.nan])
    np.testing.assert_array_equal(component_values(rows, "after", "absent"), [np.nan, np.nan])


def test_pooling_averages_over_seeds_before_it_resamples_prompts(config):
    def seed(offset):
        values = np.stack([np.zeros(4), np.array([1.0, 2.0, 3.0, 4.0]) + offset], axis=1)
        gain = {"before": 0.0, "after": 2.5 + offset, "difference": 2.5 + offset, "interval": [offset - 1, offset + 5]}
        share, sides = {"value": 0.5, "interval": [0.0, 1.0]}, {"before": 1.0, "after": 2.0}
        numbers = {"reward_model": gain, "judge": gain, "kl": 1.0, "length_ratio": 1.0}
        numbers |= dict.fromkeys(("win_rate", "judge_win_rate", "judge_accuracy"), share)
        numbers |= dict.fromkeys(("perplexity", "distinct_2", "stopped_share"), sides)
        return JudgedRun(numbers, {"reward_model": values, "judge": values}, [])

    # The second seed reverses the order of the prompts: prompt by prompt both together gain the same.
    second = seed(2.0)
    values = second.prompt_values["judge"]
    values[:, 1] = values[::-1, 1].copy()
    result = pooled([seed(0.0), second], load_config(config).config)
    assert result["judge"]["difference"] == pytest.approx(3.5)
    assert result["judge"]["interval"] == pytest.approx([3.5, 3.5])
    assert result["judge"]["seeds_above_zero"] == 1
    assert result["judge"]["standard_deviation"] == pytest.approx(np.sqrt(2))
