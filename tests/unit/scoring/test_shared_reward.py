"""A reward model on the policy's trunk scores as the merged model does, and leaves the policy alone."""

import json

import numpy as np
import peft
import pytest
import torch
from ppo_helpers import runtime
from stage_helpers import Recorder, make_config, write_demonstrations, write_preferences
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from reward_models.normalise import Normalisation
from reward_models.scalar import ScalarRewardModel
from rlhf.config.model import LoraConfig, ModelConfig
from rlhf.errors import ModelError, StageError
from rlhf.files.run_folder import RunFolder
from rlhf.models.adapters import add_adapters, merge_and_save
from rlhf.models.load import load_policy, load_sequence_classifier, load_tokenizer
from rlhf.models.precision import round_frozen_matrices
from rlhf.models.shared_trunk import Adapters, fingerprint, save_adapter
from rlhf.scoring.scorer import build_scorer
from rlhf.scoring.shared_reward import ADAPTER, load_shared_reward_model
from rlhf.stages import ppo, reward, sft

PROMPTS = ["say red", "item 4: say a much longer thing, please", [{"role": "user", "content": "say blue"}]]
RESPONSES = ["good red", "bad", [{"role": "assistant", "content": "good blue, and a lot more of it"}]]


def stir(model, seed=0):
    """Stand for training: move every trainable weight."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A run folder after the SFT and the reward stage, both by LoRA."""
    folder = tmp_path_factory.mktemp("shared")
    write_demonstrations(folder / "demonstrations.jsonl")
    write_preferences(folder / "preferences.jsonl")
    for stage in (sft, reward):
        stage.run(config_in(folder), RunFolder(folder / "run"), Recorder())
    return folder


def config_in(folder, **ppo_keys):
    keys = {"learning_rate": 3e-3, "normalisation_samples": 12, "normalisation_max_response_tokens": 6}
    section = {
        "data": {"path": str(folder / "demonstrations.jsonl")},
        "rewards": {"reward_model": {"share_trunk": True}},
        **ppo_keys,
    }
    return make_config(folder, lora=True, sft={"learning_rate": 1e-2}, reward=keys, ppo=section)


def policy_of(data):
    config, folder = config_in(data), RunFolder(data / "run")
    tokenizer = load_tokenizer(config.model, folder=folder.sft)
    return ppo.make_policy(config, folder, tokenizer), folder.reward


def test_scores_are_those_of_the_folder_whatever_the_policy_has_learnt(data):
    policy, folder = policy_of(data)
    alone = ScalarRewardModel.from_folder(folder).score(PROMPTS, RESPONSES)
    shared = load_shared_reward_model(folder, policy, runtime())
    assert np.ptp(alone) > 0.1
    for seed in range(2):
        np.testing.assert_allclose(shared.score(PROMPTS, RESPONSES), alone, atol=1e-4, rtol=0)
        stir(policy, seed)
    with Adapters(policy).using("reward"):
        np.testing.assert_allclose(shared.score(PROMPTS, RESPONSES), alone, atol=1e-4, rtol=0)
    trunk = next(policy.parameters()).data_ptr()
    assert next(shared.model._model.parameters()).data_ptr() == trunk  # the same memory


def test_scores_do_not_depend_on_what_is_scored_together(data):
    policy, folder = policy_of(data)
    together = load_shared_reward_model(folder, policy, runtime())
    each = [together.score([p], [r])[0] for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    np.testing.assert_allclose(together.score(PROMPTS, RESPONSES), each, atol=1e-5, rtol=0)


def test_the_policy_is_left_alone(data):
    policy, folder = policy_of(data)
    stir(policy)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before = policy(ids).logits
    learns = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    pad = policy.config.pad_token_id
    shared = load_shared_reward_model(folder, policy, runtime())
    shared.score(PROMPTS, RESPONSES)
    with torch.no_grad():
        assert torch.equal(policy(ids).logits, before)
    assert {name for name, parameter in policy.named_parameters() if parameter.requires_grad} == learns
    assert policy.config.pad_token_id == pad
    assert getattr(policy.config, "num_labels", 2) != 1


def test_in_bfloat16_scores_are_near(data):
    policy, folder = policy_of(data)
    shared = load_shared_reward_model(folder, policy, runtime(bf16=True))
    round_frozen_matrices(policy)
    alone = ScalarRewardModel.from_folder(folder)
    raw, expected = shared.raw_score(PROMPTS, RESPONSES), alone.raw_score(PROMPTS, RESPONSES)
    assert 1e-6 < np.abs(raw - expected).max() < 0.05 * np.ptp(expected)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")  # peft's own
def test_the_stage_keeps_the_adapter_as_peft_expects_it(data):
    """An oracle without our loader: the base model's classifier, peft's own loading."""
    folder = data / "run" / "reward"
    base = AutoModelForSequenceClassification.from_pretrained(data / "run" / "sft", num_labels=1)
    model = peft.PeftModel.from_pretrained(base, folder / ADAPTER).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    by_peft = ScalarRewardModel(model, tokenizer, Normalisation.load(folder)).score(PROMPTS, RESPONSES)
    alone = ScalarRewardModel.from_folder(folder).score(PROMPTS, RESPONSES)
    np.testing.assert_allclose(by_peft, alone, atol=1e-4, rtol=0)


def test_no_adapter_is_kept_of_a_model_of_another_kind(data, tmp_path):
    for name, lora in (("full", False), ("other", True)):
        config = make_config(
            data, lora=lora, sft={},
            reward={"normalisation_samples": 4, "normalisation_max_response_tokens": 4, "max_steps": 1,
                    "model": None if not lora else {"architecture": {"hidden_size": 16, "layers": 1, "heads": 2},
                                                    "tokenizer": {"vocab_size": 270}, "lora": {"rank": 2}}},
        )  # fmt: skip
        folder = RunFolder(tmp_path / name)
        folder.root.mkdir()
        folder.sft.symlink_to(data / "run" / "sft")
        reward.run(config, folder, Recorder())
        assert (folder.reward / "model.safetensors").is_file()
        assert not (folder.reward / ADAPTER).exists()


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_other_families(family, tmp_path):
    architecture = {"type": family, "hidden_size": 32, "layers": 2, "heads": 4, "max_positions": 128}
    config = ModelConfig(architecture=architecture)
    tokenizer = load_tokenizer(config, ["say red", "good red", "bad blue"] * 5)
    made = add_adapters(load_sequence_classifier(config, tokenizer), LoraConfig(), "reward_model")
    trunk = fingerprint(made)
    stir(made)
    weights = {name: p.detach().clone() for name, p in made.named_parameters() if p.requires_grad}
    settings = made.peft_config["default"]
    merge_and_save(made, tokenizer, tmp_path / "reward")
    save_adapter(tmp_path / "reward" / ADAPTER, settings, weights, "default", trunk)
    Normalisation(0.5, 2.0, 9).save(tmp_path / "reward")
    policy = add_adapters(load_policy(config, tokenizer), LoraConfig(rank=2, top_layers=1), "language_model")
    shared = load_shared_reward_model(tmp_path / "reward", policy, runtime())
    alone = ScalarRewardModel.from_folder(tmp_path / "reward").score(PROMPTS, RESPONSES)
    np.testing.assert_allclose(shared.score(PROMPTS, RESPONSES), alone, atol=1e-4, rtol=0)
    assert np.ptp(alone) > 0.05


def test_training_shares_and_evaluation_loads(data):
    policy, _ = policy_of(data)
    config, folder = config_in(data), RunFolder(data / "run")
    in_training, alone = build_scorer(config, folder, runtime(), policy), build_scorer(config, folder, runtime())
    assert "reward" in policy.peft_config
    assert not isinstance(in_training.components[0].function.model, torch.nn.Module)
    assert isinstance(alone.components[0].function.model, torch.nn.Module)
    first, second = (scorer(PROMPTS[:2], RESPONSES[:2]).total for scorer in (in_training, alone))
    np.testing.assert_allclose(first, second, atol=1e-4, rtol=0)
    fresh, _ = policy_of(data)
    plain = config_in(data, rewards={"reward_model": {}})
    build_scorer(plain, folder, runtime(), fresh)
    assert "reward" not in fresh.peft_config  # the default is a model of its own


def test_one_trunk_serves_four_roles_in_a_whole_stage(data):
    keys = {
        "iterations": 2, "episodes_per_iteration": 4, "minibatches": 2, "epochs": 1, "learning_rate": 1e-3,
        "rollout": {"max_response_tokens": 4},
    }  # fmt: skip
    configs = {
        name: config_in(data, **keys, critic={"type": "adapter"}, rewards={"reward_model": {"share_trunk": shared}})
        for name, shared in (("hydra", True), ("models", False))
    }
    scores = {}
    for name, config in configs.items():
        run = RunFolder(data / name)
        run.root.mkdir()
        for stage in ("sft", "reward"):
            (run.root / stage).symlink_to(data / "run" / stage)
        recorder = StageRecorder()
        ppo.run(config, run, recorder)
        scores[name] = recorder.curve("ppo/score")
        assert not any(part in file.name for file in run.ppo.rglob("*") for part in ("reward",))
        assert {entry.name for entry in (run.ppo / "critic").iterdir()} == {
            "adapter_config.json", "adapter_model.safetensors", "value_head.pt",
        }  # fmt: skip
        index = json.loads((run.ppo / "config.json").read_text())
        assert index["architectures"] == ["LlamaForCausalLM"]
    assert scores["hydra"] == pytest.approx(scores["models"], abs=1e-4)
    assert len(scores["hydra"]) == 2


class StageRecorder(Recorder):
    """A tracker of the PPO stage."""

    def log_rollouts(self, rows, iteration):
        pass


def test_what_cannot_share_says_why(data, tmp_path):
    policy, folder = policy_of(data)
    with pytest.raises(ModelError, match=r"trained in full, so its trunk moves.* Set model\.lora, or ppo\.rewards"):
        load_shared_reward_model(folder, policy.get_base_model(), runtime())
    with pytest.raises(StageError, match=r"has no reward model with an adapter \(adapter/\).* run `rlhf reward` again"):
        load_shared_reward_model(tmp_path, policy, runtime())
    config = ModelConfig(architecture={"hidden_size": 32, "layers": 2, "heads": 4, "max_positions": 128})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    other = add_adapters(load_policy(config, tokenizer, seed=5), LoraConfig(), "language_model")
    with pytest.raises(ModelError, match="trained on another trunk than that of the policy"):
        load_shared_reward_model(folder, other, runtime())
