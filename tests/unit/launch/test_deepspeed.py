"""The DeepSpeed config, and putting a model's weights together. What ZeRO computes is tested in integration."""

import importlib.util
import os
import warnings
from unittest import mock

import pytest
import torch
from torch import nn

from rlhf.config.schema import DistributedConfig
from rlhf.errors import ConfigError
from rlhf.launch.deepspeed import deepspeed_config, forget_zero, full_state, gathered_parameters

PLAIN = {"bf16": False, "max_gradient_norm": 1.0}


@pytest.fixture(autouse=True)
def _environment_and_filters_are_restored():
    with mock.patch.dict(os.environ), warnings.catch_warnings():
        yield
    forget_zero()


def config(**keys):
    return deepspeed_config(DistributedConfig(**keys), **PLAIN)


def test_without_zero_there_is_no_config():
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"  # left behind by an earlier training
    assert config() is None
    assert "ACCELERATE_USE_DEEPSPEED" not in os.environ


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_has_a_config_that_compiles_nothing(stage):
    made = config(zero=stage)
    assert made["zero_optimization"]["stage"] == stage
    assert ("stage3_gather_16bit_weights_on_model_save" in made["zero_optimization"]) == (stage == 3)
    assert "optimizer" not in made  # the trainer's own, of torch
    assert made["zero_allow_untested_optimizer"]
    assert not made["zero_force_ds_cpu_optimizer"]
    import deepspeed

    assert not deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"]


def test_batches_are_those_of_the_caller_and_single_by_default():
    made = config(zero=2)
    assert (made["train_micro_batch_size_per_gpu"], made["gradient_accumulation_steps"]) == (1, 1)
    made = deepspeed_config(DistributedConfig(zero=2), **PLAIN, microbatch_size=4, accumulation_steps=3)
    assert (made["train_micro_batch_size_per_gpu"], made["gradient_accumulation_steps"]) == (4, 3)


def test_precision_is_autocast_over_float32():
    assert "torch_autocast" not in config(zero=1)
    made = deepspeed_config(DistributedConfig(zero=1), bf16=True, max_gradient_norm=None)
    assert made["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    assert not {"bf16", "fp16"} & set(made)


def test_clipping_can_be_off():
    assert config(zero=1)["gradient_clipping"] == 1.0
    made = deepspeed_config(DistributedConfig(zero=1), bf16=False, max_gradient_norm=None)
    assert made["gradient_clipping"] == 0.0


def test_the_optimizer_can_stay_in_host_memory():
    assert config(zero=3, offload=True)["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert "offload_optimizer" not in config(zero=3)["zero_optimization"]


def test_further_keys_are_laid_over_ours_section_by_section():
    extra = {"zero_optimization": {"overlap_comm": False}, "steps_per_print": 7}
    given = DistributedConfig(zero=3, deepspeed=extra)
    made = deepspeed_config(given, **PLAIN)
    assert made["zero_optimization"]["overlap_comm"] is False
    assert made["zero_optimization"]["stage"] == 3
    assert made["steps_per_print"] == 7
    made["zero_optimization"]["overlap_comm"] = True
    assert given.deepspeed == extra  # the configuration did not change


@pytest.mark.parametrize(
    ("extra", "key", "way_out"),
    [
        ({"train_batch_size": 8}, "train_batch_size", "batch_size"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps", "microbatch_size"),
        ({"gradient_clipping": 0.5}, "gradient_clipping", "max_gradient_norm"),
        ({"optimizer": {"type": "Adam"}}, "optimizer", "learning_rate"),
        ({"bf16": {"enabled": True}}, "bf16", r"model\.dtype"),
        ({"zero_optimization": {"stage": 1}}, r"zero_optimization\.stage", r"distributed\.zero"),
        ({"zero_optimization": {"offload_optimizer": {}}}, r"zero_optimization\.offload_optimizer", "offload"),
    ],
)
def test_keys_that_follow_from_ours_are_refused(extra, key, way_out):
    with pytest.raises(ConfigError, match=rf"distributed\.deepspeed\.{key} follows from .*{way_out}.*: remove it"):
        config(zero=2, deepspeed=extra)


def test_zero_without_deepspeed_says_how_to_get_it(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "deepspeed" else found(name))
    with pytest.raises(
        ConfigError,
        match=r"distributed\.zero is 2, but deepspeed is not installed.*pip install \'rlhf-trainer\[deepspeed\]\'",
    ):
        config(zero=2)


def test_a_contradiction_with_accelerates_own_settings_is_an_error():
    os.environ["ACCELERATE_CONFIG_DS_FIELDS"] = ""  # as `accelerate launch --use_deepspeed` sets it
    with pytest.raises(ConfigError, match=r"distributed\.zero is null"):
        config()
    assert config(zero=1) is not None


def test_models_are_whole_again_after_a_training_under_zero_3():
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

    kept = HfDeepSpeedConfig(config(zero=3))  # what a trainer makes of it, and keeps alive
    assert is_deepspeed_zero3_enabled()
    forget_zero()
    assert not is_deepspeed_zero3_enabled()
    assert kept.is_zero3()


def test_the_full_state_is_a_copy_of_all_parameters_or_of_the_trained_ones():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    model[0].requires_grad_(False)
    everything, trained = full_state(model), full_state(model, trainable_only=True)
    assert set(everything) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert set(trained) == {"1.weight", "1.bias"}
    with torch.no_grad():
        model[1].weight.fill_(5.0)
    assert torch.equal(trained["1.weight"], torch.ones(3))
    assert not any(value.requires_grad for value in everything.values())


def test_tied_weights_appear_once():
    model = nn.ModuleDict({"first": nn.Linear(2, 2, bias=False), "second": nn.Linear(2, 2, bias=False)})
    model["second"].weight = model["first"].weight
    assert set(full_state(model)) == {"first.weight"}


def test_only_the_first_process_keeps_the_state():
    os.environ["RANK"] = "1"
    assert full_state(nn.Linear(2, 2)) == {}


def test_whole_parameters_need_no_gathering():
    parameter = nn.Parameter(torch.ones(2))
    with gathered_parameters([parameter]):
        assert parameter.sum() == 2
