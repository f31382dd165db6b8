"""The configured components become one score, and what cannot be loaded is said clearly."""

import numpy as np
import pytest
from ppo_helpers import runtime
from tiny_run import run_config, save_prompts, save_reward_model, save_run

from reward_models.errors import RewardError
from reward_models.scalar import ScalarRewardModel
from rlhf.errors import StageError
from rlhf.files.run_folder import RunFolder
from rlhf.scoring import scorer
from rlhf.scoring.scorer import build_scorer, load_reward_model

TEXTS = {"prompts": ["Where is it?", "Thanks!"], "completions": ["On its way.", "You are welcome, any time."]}


@pytest.fixture
def data(tmp_path):
    return save_prompts(tmp_path / "prompts.jsonl")


def config_with(data, rewards, **changes):
    return run_config(
        data, ppo={"data": {"path": str(data)}, "rewards": rewards, "rollout": {"max_response_tokens": 8}}, **changes
    )


def test_own_reward_model_and_a_function_with_arguments_are_combined(tmp_path, data):
    file = tmp_path / "rules.py"
    file.write_text(
        "def count(completions, scale, **kwargs):\n    return [scale * len(c.split()) for c in completions]\n"
    )
    folder = save_run(tmp_path / "run")
    words = {"function": f"{file}:count", "args": {"scale": 0.5}, "weight": -1.0}
    rewards = {"reward_model": {"weight": 2.0}, "words": words}
    scores = build_scorer(config_with(data, rewards), folder, runtime())(**TEXTS)
    own = ScalarRewardModel.from_folder(folder.reward).score(TEXTS["prompts"], TEXTS["completions"])
    np.testing.assert_allclose(scores.components["reward_model"], own, rtol=1e-12)
    np.testing.assert_array_equal(scores.components["words"], [1.5, 2.5])
    np.testing.assert_allclose(scores.total, 2.0 * own - np.array([1.5, 2.5]), rtol=1e-12)


def test_error_policy_and_time_limit_are_passed_on(tmp_path, data):
    args = {"minimum_words": 2, "maximum_words": 9}
    rule = {"function": "length", "args": args, "on_error": "skip", "timeout_seconds": 3.0, "weight": 0.25}
    (component,) = build_scorer(config_with(data, {"short": rule}), RunFolder(tmp_path), runtime()).components
    assert (component.name, component.on_error, component.timeout_seconds) == ("short", "skip", 3.0)
    assert component.weight == 0.25


def test_a_model_by_path_is_another_component(tmp_path, data):
    other = save_reward_model(tmp_path / "other", seed=9)
    rewards = {"judge": {"path": str(other)}}
    scores = build_scorer(config_with(data, rewards), RunFolder(tmp_path / "run"), runtime())(**TEXTS)
    expected = ScalarRewardModel.from_folder(other).score(TEXTS["prompts"], TEXTS["completions"])
    np.testing.assert_allclose(scores.total, expected, rtol=1e-12)


def test_a_path_that_is_no_folder_is_looked_for_on_the_hub(tmp_path, data, monkeypatch):
    other = save_reward_model(tmp_path / "other", seed=9)
    asked = []
    monkeypatch.setattr(scorer, "snapshot_download", lambda name: asked.append(name) or str(other))
    build_scorer(config_with(data, {"judge": {"path": "owner/name"}}), RunFolder(tmp_path / "run"), runtime())
    assert asked == ["owner/name"]


def test_no_components_no_scorer(tmp_path, data):
    ppo = {"data": None, "rewards": {}, "environment": {"id": "rlhf/Dialogue-v0"}}
    config = run_config(data, ppo=ppo, evaluate=None)
    assert build_scorer(config, RunFolder(tmp_path), runtime()) is None


def test_missing_reward_stage(tmp_path, data):
    with pytest.raises(StageError, match="run `rlhf reward` first"):
        build_scorer(run_config(data), RunFolder(tmp_path / "run"), runtime())


def test_missing_folder_and_unreachable_hub(tmp_path, data, monkeypatch):
    missing = str(tmp_path / "nowhere")
    with pytest.raises(StageError, match=r"ppo\.rewards\.judge\.path is .*nowhere: no such folder"):
        build_scorer(config_with(data, {"judge": {"path": missing}}), RunFolder(tmp_path), runtime())

    def offline(name):
        raise ConnectionError("no network")

    monkeypatch.setattr(scorer, "snapshot_download", offline)
    with pytest.raises(StageError, match=r"judge\.path is owner/name: .*ConnectionError: no network"):
        build_scorer(config_with(data, {"judge": {"path": "owner/name"}}), RunFolder(tmp_path), runtime())


def test_unknown_function(tmp_path, data):
    with pytest.raises(RewardError, match="did you mean length"):
        build_scorer(config_with(data, {"short": {"function": "lenght"}}), RunFolder(tmp_path), runtime())


def test_precision_is_that_of_the_reward_model_if_it_has_its_own(tmp_path, data):
    folder = save_run(tmp_path / "run")
    config = run_config(data, model={"dtype": "bfloat16"})
    assert str(load_reward_model(config, folder, runtime()).model.dtype) == "torch.bfloat16"
    own = run_config(data, model={"dtype": "bfloat16"}, reward={"model": {"path": "unused", "dtype": "float32"}})
    assert str(load_reward_model(own, folder, runtime()).model.dtype) == "torch.float32"
