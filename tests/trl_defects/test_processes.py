"""Two processes: what Accelerate wraps around the models, and what that wrapper breaks.

One process with a group of its own is enough: the wrapper is the real one.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from ppo_helpers import prompts, tiny, weights
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from trl_defects.stock import ROWS, in_trl, stock_trainer, zero_critic
from trl_helpers import make_trainer


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def adapters() -> LoraConfig:
    return LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def distribute(trainer: Any) -> Any:
    """Wrap the models as Accelerate does where there are several processes."""
    loop = getattr(trainer, "ppo", trainer)  # of this project's trainer; TRL's is the loop itself
    loop.model = DistributedDataParallel(loop.model)
    return trainer


def trainer_here(folder: Path, **options: Any) -> Any:
    """This project's trainer with a critic of its own."""
    return make_trainer(
        folder, tiny(), value_model=zero_critic(), reward_model=lambda prompts, completions, **_: [1.0] * len(prompts),
        train_dataset=prompts(ROWS), response_length=6, num_ppo_epochs=1, total_episodes=8, learning_rate=1e-2,
        **options,
    )  # fmt: skip


@in_trl
def test_adapters_without_a_reference_fail_on_two_processes_in_trl(tmp_path, group):
    stock_trainer(tmp_path, peft_config=adapters()).train()  # one process: nothing is wrong
    trainer = distribute(stock_trainer(tmp_path, peft_config=adapters()))
    with pytest.raises(AttributeError, match="'DistributedDataParallel' object has no attribute 'policy'"):
        trainer.train()


def test_adapters_without_a_reference_train_on_two_processes_here(tmp_path, group):
    trainer = distribute(trainer_here(tmp_path, peft_config=adapters()))
    before = weights(trainer.actor_critic)
    trainer.train()
    moved = [name for name, weight in weights(trainer.actor_critic).items() if not torch.equal(weight, before[name])]
    assert any("lora_" in name for name in moved)


@in_trl
def test_save_model_fails_on_two_processes_in_trl(tmp_path, group):
    trainer = stock_trainer(tmp_path)
    trainer.save_model(str(tmp_path / "one"))
    assert (tmp_path / "one" / "model.safetensors").is_file()
    with pytest.raises(RuntimeError, match="share memory"):
        distribute(trainer).save_model(str(tmp_path / "two"))


def test_save_model_saves_policy_and_critic_on_two_processes_here(tmp_path, group):
    trainer = distribute(trainer_here(tmp_path))
    trainer.save_model(str(tmp_path / "two"))
    assert (tmp_path / "two" / "model.safetensors").is_file()
    assert (tmp_path / "two" / "critic" / "model.safetensors").is_file()
