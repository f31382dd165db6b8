"""From TRL's names to section `ppo`: each option lands in its key, and mistakes come back in TRL's names."""

import re

import pytest
import torch
from ppo_helpers import letters_tokenizer
from trl_helpers import ppo_config

from rlhf.config.ppo import PPOSectionConfig
from rlhf.errors import ModelError
from rlhf.trl.runtime import to_deepspeed, to_runtime
from rlhf.trl.translate import NAMES, filled_in, stop_token_ids, to_section


def section(folder, *, prompts=24, longest=5, processes=1, **options):
    return to_section(ppo_config(folder, **options), prompts, longest, processes)


def at(found, path):
    for key in path.split("."):
        found = getattr(found, key)
    return found


@pytest.mark.parametrize(
    ("option", "value", "key", "expected"),
    [
        ("advantage", "reinforce", "advantage", "reinforce"),
        ("bootstrap_truncated", True, "bootstrap_truncated", True),
        ("cliprange", 0.3, "clip_range", 0.3),
        ("cliprange_value", 0.4, "value_clip_range", 0.4),
        ("critic", "shared", "critic.type", "shared"),
        ("critic_learning_rate", 0.5, "critic.learning_rate", 0.5),
        ("entropy_coefficient", 0.01, "entropy_coefficient", 0.01),
        ("gamma", 0.9, "gamma", 0.9),
        ("kl_coef", 0.7, "kl.coefficient", 0.7),
        ("kl_controller", "adaptive", "kl.controller", "adaptive"),
        ("kl_horizon", 77, "kl.horizon", 77),
        ("kl_target", 2.0, "kl.target", 2.0),
        ("lam", 0.8, "gae_lambda", 0.8),
        ("learning_rate", 0.1, "learning_rate", 0.1),
        ("local_rollout_forward_batch_size", 3, "rollout.batch_size", 3),
        ("max_grad_norm", 2.5, "max_gradient_norm", 2.5),
        ("max_grad_norm", 0.0, "max_gradient_norm", None),
        ("max_prompt_length", 99, "rollout.max_prompt_tokens", 99),
        ("max_prompt_length", None, "rollout.max_prompt_tokens", 5),  # the longest there is
        ("microbatch_tokens", 123, "microbatch_tokens", 123),
        ("microbatch_tokens", None, "microbatch_tokens", 8 * (5 + 53)),
        ("min_response_length", 4, "rollout.min_response_tokens", 4),
        ("missing_eos_penalty", 1.5, "missing_stop.action", "subtract"),
        ("missing_eos_penalty", 1.5, "missing_stop.value", 1.5),
        ("missing_stop_action", "replace", "missing_stop.action", "replace"),
        ("num_mini_batches", 2, "minibatches", 2),
        ("num_ppo_epochs", 3, "epochs", 3),
        ("response_length", 7, "rollout.max_response_tokens", 7),
        ("samples_per_prompt", 4, "samples_per_prompt", 4),
        ("stop_strings", ("x", "y"), "rollout.stop_strings", ["x", "y"]),
        ("temperature", 0.6, "rollout.temperature", 0.6),
        ("top_k", 5, "rollout.top_k", 5),
        ("top_p", 0.9, "rollout.top_p", 0.9),
        ("vf_coef", 0.2, "value_coefficient", 0.2),
        ("weight_decay", 0.1, "weight_decay", 0.1),
        ("whiten_advantages", False, "whiten_advantages", False),
        ("whiten_rewards", True, "whiten_rewards", True),
        ("gradient_accumulation_steps", 3, "episodes_per_iteration", 24),
        ("per_device_train_batch_size", 5, "episodes_per_iteration", 5),
        ("total_episodes", 17, "iterations", 3),  # of 8 episodes each
        ("total_episodes", None, "iterations", 9),  # 3 passes over 24 prompts
        ("num_train_epochs", 1.5, "iterations", 5),  # 36 episodes
        ("max_steps", 6, "iterations", 6),
    ],
)
def test_an_option_lands_in_its_key(tmp_path, option, value, key, expected):
    assert at(section(tmp_path, **{option: value}), key) == expected


def test_every_name_is_tested_above_and_every_key_exists():
    table = test_an_option_lands_in_its_key.pytestmark[0].args[1]
    assert set(NAMES.values()) - {row[0] for row in table} == {"missing_stop_value"}
    for key in NAMES:
        at(PPOSectionConfig(), key)


def test_episodes_are_counted_over_all_processes(tmp_path):
    found = section(tmp_path, processes=3, total_episodes=48, num_mini_batches=2)
    assert (found.episodes_per_iteration, found.iterations) == (24, 2)
    filled = filled_in(ppo_config(tmp_path, total_episodes=48), found, 3)
    sizes = ("batch_size", "local_batch_size", "micro_batch_size", "mini_batch_size", "local_mini_batch_size")
    assert [getattr(filled, name) for name in sizes] == [24, 8, 24, 12, 4]
    assert filled.num_total_batches == 2


def test_sizes_that_follow_may_be_given_where_they_agree(tmp_path):
    options = {"per_device_train_batch_size": 8, "total_episodes": 16}
    assert filled_in(ppo_config(tmp_path, batch_size=8, **options), section(tmp_path, **options), 1).batch_size == 8
    with pytest.raises(ValueError, match="batch_size is 9, but 8 follows from per_device_train_batch_size"):
        filled_in(ppo_config(tmp_path, batch_size=9, **options), section(tmp_path, **options), 1)


def test_episodes_of_a_source_have_any_length(tmp_path):
    found = section(tmp_path, longest=None, response_length=7)
    assert found.microbatch_tokens == 8 * (512 + 7)
    assert found.environment.id == "source"
    assert section(tmp_path, longest=None, response_length=7, max_prompt_length=3).microbatch_tokens == 80


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0: it should be greater than 0"),
        ({"lam": 2.0}, "lam is 2.0: it should be less than or equal to 1"),
        ({"kl_controller": "fixd"}, "kl_controller is 'fixd': it should be 'fixed' or 'adaptive'"),
        ({"advantage": "gea"}, "advantage is 'gea': it should be 'gae', 'rloo', 'group' or 'reinforce'"),
        ({"critic": "none"}, "critic is 'none': it should be 'separate', 'shared' or 'adapter'"),
        ({"num_mini_batches": 0}, "num_mini_batches is 0: it should be greater than 0"),
        ({"missing_eos_penalty": -1.0}, "missing_eos_penalty -1.0 must be positive: it is subtracted"),
        ({"missing_stop_value": 2.0}, "missing_stop_value 2.0 has no effect with missing_stop_action none"),
        ({"min_response_length": 60}, "min_response_length 60 exceeds response_length 53"),
        ({"advantage": "rloo"}, "advantage rloo compares samples of one prompt: samples_per_prompt must be 2 or more"),
        (
            {"num_mini_batches": 3},
            "num_mini_batches is 3, which does not divide the 8 episodes of an iteration (per_device_train_batch_size "
            "* gradient_accumulation_steps * processes)",
        ),
        ({"samples_per_prompt": 3}, "samples_per_prompt is 3, which does not divide the 8 episodes"),
        ({"total_episodes": 0}, "total_episodes is 0: it must be positive"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size 0 and gradient_accumulation_steps 1 must be"),
        ({"max_steps": 2, "total_episodes": 16}, "max_steps 2 and total_episodes 16 both say how long to train"),
        (
            {"missing_eos_penalty": 1.0, "missing_stop_action": "replace"},
            "missing_eos_penalty 1.0 and missing_stop_action 'replace' are two answers",
        ),
    ],
)
def test_mistakes_come_back_in_trls_names(tmp_path, options, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        section(tmp_path, **options)
    assert "episodes_per_iteration" not in str(caught.value)


def test_all_mistakes_are_named_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)lam is 2\.0.*temperature is 0\.0|temperature is 0\.0.*lam is 2\.0"):
        section(tmp_path, temperature=0.0, lam=2.0)


def test_an_endless_source_needs_a_number_of_episodes(tmp_path):
    with pytest.raises(ValueError, match="total_episodes is not set"):
        section(tmp_path, prompts=None)
    assert section(tmp_path, prompts=None, total_episodes=9).iterations == 2


def test_stop_tokens(tmp_path):
    tokenizer = letters_tokenizer()
    assert stop_token_ids(ppo_config(tmp_path), tokenizer) == (1,)
    assert stop_token_ids(ppo_config(tmp_path, stop_token="eos"), tokenizer) == (1,)
    assert stop_token_ids(ppo_config(tmp_path, stop_token_id=5), tokenizer) == (5,)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="set stop_token_id"):
        stop_token_ids(ppo_config(tmp_path), tokenizer)


@pytest.mark.parametrize(
    ("bf16", "environment", "dtype"),
    [(None, "no", torch.float32), (True, "no", torch.bfloat16), (None, "bf16", torch.bfloat16)],
)
def test_precision(tmp_path, monkeypatch, bf16, environment, dtype):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", environment)
    found = to_runtime(ppo_config(tmp_path, bf16=bf16, compile_kernels=False))
    assert (found.compute_dtype, found.device.type, found.compile_kernels) == (dtype, "cpu", False)


def test_what_accelerate_was_told_and_is_not_supported_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(ValueError, match="mixed precision fp8; allowed are no and bf16"):
        to_runtime(ppo_config(tmp_path))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP"):
        to_runtime(ppo_config(tmp_path))


def test_without_deepspeed_there_is_no_config(tmp_path):
    assert to_deepspeed(ppo_config(tmp_path), bf16=False) is None
