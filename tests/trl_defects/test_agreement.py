"""Before its first step an update must find what the rollout sampled from: ratio 1, approximate KL 0.

What makes the two disagree in TRL's trainer: dropout, the model's generation config, padding, precision.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from ppo_helpers import advantaged, letters_tokenizer, prompts, tiny
from torch import nn
from trl_defects.stock import ROWS, in_trl, left_padding, stock_trainer, zero_critic
from trl_helpers import make_trainer

from rlhf.policies.head import trunk


@pytest.fixture
def fresh_accelerate() -> Iterator[None]:
    """Let the test's first Accelerator read the environment anew, and the next test's as well."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def count(prompts: Any, completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def first_minibatch(folder: Any, policy: Any, **options: Any) -> dict[str, float]:
    """What TRL's trainer logs of the only minibatch of its first iteration, before any step."""
    options.setdefault("processing_class", left_padding(letters_tokenizer()))
    trainer = stock_trainer(folder, policy, stop_token="eos", **options)
    trainer.train()
    (kept,) = trainer.spy.iterations
    return {name: float(kept[f"{name}_stats"]) for name in ("ratio", "approxkl", "pg_clipfrac")}


def first_minibatch_here(folder: Any, policy: Any, **options: Any) -> dict[str, float]:
    """The same of this project's trainer, and the largest gap between the sampler's log-probs and the trainer's."""
    trainer = make_trainer(
        folder, policy, reward_model=count, train_dataset=prompts(ROWS), num_ppo_epochs=1, response_length=6, **options
    )
    batch = advantaged(trainer.ppo)
    gap = float((batch.logprobs - batch.sampled_logprobs)[batch.mask].abs().max())
    return {**trainer.ppo.update(batch, 0).means(), "gap": gap}


def assert_agrees(found: dict[str, float], gap: float = 1e-5) -> None:
    assert (found["ratio"], found["ratio_max"]) == (1.0, 1.0)
    assert (found["approx_kl"], found["clip_fraction"]) == (0.0, 0.0)
    assert found["gap"] < gap


@in_trl
@pytest.mark.parametrize(("family", "options"), [("llama", {}), ("opt", {"dropout": 0.0})])
def test_trl_agrees_with_itself_where_nothing_is_wrong(tmp_path, family, options):
    """What the other tests here are held against."""
    found = first_minibatch(tmp_path, tiny(family, **options))
    assert found["approxkl"] < 1e-10
    assert found["ratio"] == pytest.approx(1, abs=1e-4)


@in_trl
def test_dropout_as_a_number_survives_in_trl(tmp_path):
    policy = tiny("opt")
    assert policy.config.dropout == 0.1  # the default of this family
    found = first_minibatch(tmp_path, policy)
    assert found["approxkl"] > 0.05
    assert found["pg_clipfrac"] > 0.1


def test_dropout_as_a_number_is_off_here(tmp_path):
    assert_agrees(first_minibatch_here(tmp_path, tiny("opt")))


def with_repetition_penalty() -> Any:
    policy = tiny()
    policy.generation_config.repetition_penalty = 1.2
    return policy


@in_trl
def test_the_models_generation_config_leaks_into_the_rollout_in_trl(tmp_path):
    found = first_minibatch(tmp_path, with_repetition_penalty())
    assert found["approxkl"] > 1e-4


def test_the_models_generation_config_stays_out_here(tmp_path):
    assert_agrees(first_minibatch_here(tmp_path, with_repetition_penalty()))


@in_trl
def test_right_padding_is_accepted_in_trl(tmp_path):
    tokenizer = letters_tokenizer()
    tokenizer.padding_side = "right"
    found = first_minibatch(tmp_path, tiny(), processing_class=tokenizer)
    assert found["approxkl"] > 0.01
    assert found["pg_clipfrac"] > 0.05


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_padding_side_does_not_matter_here(tmp_path, side):
    tokenizer = letters_tokenizer()
    tokenizer.padding_side = side
    assert_agrees(first_minibatch_here(tmp_path, tiny(), tokenizer=tokenizer))


def dtypes_of(module: nn.Module) -> dict[bool, set[torch.dtype]]:
    """Fill in, while it runs, which dtypes a module returns without gradients (False) and with (True)."""
    seen: dict[bool, set[torch.dtype]] = {False: set(), True: set()}
    module.register_forward_hook(lambda _, inputs, output: seen[torch.is_grad_enabled()].add(output.dtype))
    return seen


@in_trl
@pytest.mark.usefixtures("fresh_accelerate")
def test_bf16_does_nothing_in_trl(tmp_path):
    policy = tiny()
    seen = dtypes_of(policy.model.layers[0].mlp)
    trainer = stock_trainer(tmp_path, policy, bf16=True)
    trainer.train()
    assert trainer.args.bf16
    assert trainer.accelerator.mixed_precision == "no"
    assert seen == {False: {torch.float32}, True: {torch.float32}}


@in_trl
@pytest.mark.usefixtures("fresh_accelerate")
def test_bf16_by_environment_leaves_the_rollout_in_float32_in_trl(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    policy = tiny()
    seen = dtypes_of(policy.model.layers[0].mlp)
    trainer = stock_trainer(tmp_path, policy, bf16=True, value_model=zero_critic())
    trainer.train()
    assert trainer.accelerator.mixed_precision == "bf16"
    assert seen == {False: {torch.float32}, True: {torch.bfloat16}}
    assert float(trainer.spy.iterations[0]["approxkl_stats"]) > 1e-7


def test_bf16_acts_on_rollout_and_update_alike_here(tmp_path):
    policy = tiny()
    seen = dtypes_of(policy.model.layers[0].mlp)
    trainer = make_trainer(
        tmp_path, policy, reward_model=count, train_dataset=prompts(ROWS), num_ppo_epochs=1, response_length=6,
        total_episodes=8, bf16=True,
    )  # fmt: skip
    trainer.train()
    assert seen == {False: {torch.bfloat16}, True: {torch.bfloat16}}
    assert next(trunk(trainer.ppo.generator._weights.refresh()).parameters()).dtype == torch.bfloat16


def test_bf16_keeps_the_ratio_at_1_here(tmp_path):
    assert_agrees(first_minibatch_here(tmp_path, tiny(), bf16=True), gap=0.3)  # the gap is that of bfloat16
