"""Every option is in one of three groups: it acts, it is refused by name, or it draws a warning by name."""

import dataclasses
import warnings

import pytest
from transformers import HfArgumentParser, TrainingArguments
from trl_helpers import ppo_config

from rlhf.trl import PPOConfig
from rlhf.trl.options import ACTS, REFUSED, WARNED

FIELDS = {field.name: field for field in dataclasses.fields(PPOConfig)}
# Options of TRL 1.12.0's PPOConfig besides those of transformers, read off it once.
OF_TRL = """
    dataset_num_proc num_mini_batches total_episodes local_rollout_forward_batch_size num_sample_generations
    response_length stop_token stop_token_id temperature missing_eos_penalty sft_model_path world_size num_total_batches
    micro_batch_size local_batch_size batch_size local_mini_batch_size mini_batch_size push_to_hub reward_model_path
    model_adapter_name ref_adapter_name num_ppo_epochs whiten_rewards kl_coef kl_estimator cliprange vf_coef
    cliprange_value gamma lam ds3_gather_for_generation
""".split()
# Another value than the default, for refused and warned options of each type of default.
OTHER = {
    "accelerator_config": {"split_batches": True},
    "dataloader_multiprocessing_context": "spawn",
    "dataloader_prefetch_factor": 2,
    "debug": "underflow_overflow",
    "eval_strategy": "steps",
    "fsdp": "full_shard",
    "fsdp_config": {"min_num_params": 1},
    "include_for_metrics": ["inputs"],
    "include_num_input_tokens_seen": "all",
    "label_names": ["labels"],
    "liger_kernel_config": {"rope": True},
    "length_column_name": "tokens",
    "metric_for_best_model": "loss",
    "parallelism_config": object(),
    "train_sampling_strategy": "sequential",
}


def another(name):
    default = FIELDS[name].default
    return OTHER.get(name, not default if isinstance(default, bool) else 3 if default in (None, 0, 0.0) else "other")


@pytest.mark.parametrize("name", FIELDS)
def test_every_option_is_in_one_group(name):
    known = {field.name for field in dataclasses.fields(TrainingArguments)}
    groups = [group for group in (ACTS, REFUSED, WARNED) if name in group]
    # An option that transformers got after this was written draws the general warning.
    assert len(groups) == 1 or (name in known and not groups and "5.23" not in transformers_version())


def transformers_version():
    import transformers

    return transformers.__version__


def test_trls_options_are_there():
    assert set(OF_TRL) <= set(FIELDS)


def test_defaults_are_trls():
    expected = {
        "learning_rate": 3e-6, "logging_steps": 10, "num_mini_batches": 1, "local_rollout_forward_batch_size": 64,
        "num_sample_generations": 10, "response_length": 53, "temperature": 0.7, "num_ppo_epochs": 4, "kl_coef": 0.05,
        "cliprange": 0.2, "vf_coef": 0.1, "cliprange_value": 0.2, "gamma": 1.0, "lam": 0.95, "stop_token": None,
        "whiten_rewards": False, "missing_eos_penalty": None, "sft_model_path": "EleutherAI/pythia-160m",
    }  # fmt: skip
    assert {name: FIELDS[name].default for name in expected} == expected
    ours = {"adam_epsilon": 1e-5, "bf16": None, "gradient_checkpointing": False}
    assert {name: FIELDS[name].default for name in ours} == ours


def test_defaults_draw_no_warning(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PPOConfig(output_dir=str(tmp_path), use_cpu=True)


@pytest.mark.parametrize("name", sorted(set(REFUSED) & set(FIELDS)))
def test_what_would_change_the_result_is_refused_by_name(tmp_path, name):
    with pytest.raises(ValueError, match=rf"^{name} is .*does not work here: \w+"):
        ppo_config(tmp_path, **{name: another(name)})


@pytest.mark.parametrize("name", sorted(set(WARNED) & set(FIELDS)))
def test_what_has_no_effect_draws_a_warning_by_name(tmp_path, name):
    more = {"dataloader_num_workers": 1} if name == "dataloader_prefetch_factor" else {}
    more |= {"use_cpu": False} if name == "dataloader_pin_memory" else {}  # off on CPUs: transformers' own doing
    with pytest.warns(UserWarning, match=rf"these options have no effect: .*{name} \("):
        ppo_config(tmp_path, **{name: another(name), **more})


def test_all_that_is_refused_is_named_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"(?s)(?=.*fp16 is True)(?=.*data_seed is 3)"):
        ppo_config(tmp_path, fp16=True, data_seed=3)


def test_an_option_of_another_transformers_draws_a_warning(tmp_path):
    @dataclasses.dataclass
    class Newer(PPOConfig):
        invented: int = 0

    Newer(output_dir=str(tmp_path), use_cpu=True)
    with pytest.warns(UserWarning, match="invented"):
        Newer(output_dir=str(tmp_path), use_cpu=True, invented=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl_estimator": "k3"}, "kl_estimator is 'k3'; only k1 is allowed"),
        ({"stop_token": "pad"}, "stop_token is 'pad'; allowed are 'eos' and None"),
        ({"stop_token": "eos", "stop_token_id": 3}, "give stop_token or stop_token_id, not both"),
        ({"optim": "lomo"}, "optim is 'lomo'"),
        ({"save_strategy": "best"}, "save_strategy is 'best'"),
        ({"hub_strategy": "checkpoint"}, "hub_strategy is 'checkpoint'; allowed are every_save and end"),
        ({"world_size": 8}, "world_size is 8, but 1 processes were started"),
    ],
)
def test_values_that_do_not_act_are_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        ppo_config(tmp_path, **options)


def test_options_may_be_copied(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".*: average_tokens_across_devices ")  # which transformers 4 changes itself
        assert dataclasses.replace(ppo_config(tmp_path), seed=7).seed == 7


def test_options_are_read_from_a_command_line(tmp_path):
    line = f"--output_dir {tmp_path} --use_cpu --kl_coef 0.2 --num_mini_batches 2 --stop_strings x y --advantage rloo"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (read,) = HfArgumentParser(PPOConfig).parse_args_into_dataclasses(line.split())
    assert (read.kl_coef, read.num_mini_batches, read.advantage) == (0.2, 2, "rloo")
    assert read.stop_strings == ["x", "y"]


def test_both_names_of_recomputing_activations_mean_the_same(tmp_path):
    assert ppo_config(tmp_path, gradient_checkpointing=True).gradient_checkpointing
    if "activation_checkpointing" in FIELDS:  # the newer name
        assert ppo_config(tmp_path, activation_checkpointing=True).gradient_checkpointing
    assert not ppo_config(tmp_path).gradient_checkpointing
