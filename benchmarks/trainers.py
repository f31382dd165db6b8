"""TRL's PPO trainer and ours behind one function: the same roles and options go in, the same records come out."""

import io
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
from transformers import TrainerCallback

from benchmarks.shapes import Roles, Shape
from benchmarks.stock import stock_ppo
from rlhf.launch.runtime import multiplies_bfloat16

Record = dict[str, float]
PHASES = ("rollout", "score", "update")


@dataclass(frozen=True)
class Mode:
    """A trainer and its precision.

    Attributes:
        stock: Whether it is TRL's trainer.
        autocast: TRL's: bfloat16 autocast from the environment, because its own bf16 flag does nothing.
        bf16_weights: TRL's: all weights are bfloat16, without float32 masters.
        eager: TRL's: plain attention, which avoids torch's slow backward pass of bfloat16 attention on CPUs.
        bf16: Ours: bfloat16 with float32 masters.
        critic: Ours: separate, as TRL's is, or shared.
    """

    stock: bool = False
    autocast: bool = False
    bf16_weights: bool = False
    eager: bool = False
    bf16: bool = False
    critic: str = "separate"

    @property
    def in_bfloat16(self) -> bool:
        """Whether products are in bfloat16, which takes minutes where the processor does not multiply it."""
        return self.autocast or self.bf16_weights or self.bf16


MODES = {  # in the order of measurement: what is compared stands side by side
    "trl_fp32": Mode(stock=True),
    "fp32": Mode(),
    "trl_autocast_eager": Mode(stock=True, autocast=True, eager=True),
    "bf16": Mode(bf16=True),
    "best": Mode(bf16=multiplies_bfloat16(), critic="shared"),
    "trl_autocast": Mode(stock=True, autocast=True),
    "trl_bf16_eager": Mode(stock=True, bf16_weights=True, eager=True),
}


def modes_here() -> list[str]:
    """Name the modes that this machine can run at a speed worth measuring."""
    return [name for name, mode in MODES.items() if multiplies_bfloat16() or not mode.in_bfloat16]


def shape_options(shape: Shape, iterations: int) -> dict[str, Any]:
    """Options for a shape."""
    return {
        **batch_options(shape.episodes, shape.minibatches, iterations),
        "num_ppo_epochs": shape.epochs,
        "response_length": shape.response_tokens,
        "stop_token": "eos" if shape.vocabulary is None else None,
        "temperature": 0.7,
        "learning_rate": 1e-6,
    }


def batch_options(episodes: int, minibatches: int, iterations: int) -> dict[str, Any]:
    """Options that make both trainers take one step for each minibatch, of `episodes / minibatches` episodes.

    TRL's trainer steps after each minibatch, as it says it does, only if an iteration is its whole data set and a
    minibatch one microbatch.
    """
    return {
        "total_episodes": iterations * episodes,
        "per_device_train_batch_size": episodes // minibatches,
        "gradient_accumulation_steps": minibatches,
        "num_mini_batches": minibatches,
        "local_rollout_forward_batch_size": episodes,
    }


def train(mode: Mode, roles: Roles, options: dict[str, Any]) -> list[Record]:
    """Train, and return of each iteration: seconds of its phases, tokens, mean score, KL and reward of its episodes.

    The reward is what PPO maximises: the score minus the KL coefficient times the KL.

    Raises:
        RuntimeError: A trainer took another number of optimizer steps than epochs times minibatches.
    """
    records: list[Record] = []
    np.random.seed(options.get("seed", 42))  # TRL's trainer does not, and draws its minibatches from it
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        quiet = {"output_dir": folder, "report_to": "none", "disable_tqdm": True, "save_strategy": "no"}
        options = {"use_cpu": True, "num_sample_generations": 0, "logging_steps": 1, **quiet, **options}
        steps = (_train_stock if mode.stock else _train_ours)(mode, roles, options, records)
    expected = len(records) * options["num_ppo_epochs"] * options["num_mini_batches"]
    if steps != expected:
        raise RuntimeError(f"{mode} took {steps} optimizer steps in {len(records)} iterations, not {expected}")
    return records


def _given(roles: Roles) -> dict[str, Any]:
    return {
        "processing_class": roles.tokenizer,
        "model": roles.policy,
        "ref_model": roles.reference,
        "reward_model": roles.reward,
        "train_dataset": roles.prompts,
        "eval_dataset": roles.prompts,
        "peft_config": roles.peft_config,
    }


def _train_ours(mode: Mode, roles: Roles, options: dict[str, Any], records: list[Record]) -> int:
    from rlhf.trl import PPOConfig, PPOTrainer

    def record(iteration: Any) -> None:
        names = (*(f"seconds/{phase}" for phase in PHASES), "score", "kl", "reward")
        tokens = sum(episode.response_length for episode in iteration.episodes)
        records.append({name: iteration.metrics[f"ppo/{name}"] for name in names} | {"response_tokens": tokens})

    trainer = PPOTrainer(
        args=PPOConfig(**options, bf16=mode.bf16, critic=mode.critic, compile_kernels=True),
        value_model=None if mode.critic == "shared" else roles.critic,
        on_iteration=record,
        **_given(roles),
    )
    return _counting_steps(trainer)


def _train_stock(mode: Mode, roles: Roles, options: dict[str, Any], records: list[Record]) -> int:
    if mode.autocast:
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16"  # before the first Accelerator of the process
    stock_config, stock_trainer = stock_ppo()
    for model in (roles.policy, roles.reference, roles.reward, roles.critic):
        if mode.eager and model is not None:
            model.set_attn_implementation("eager")
    clock = _StockClock(sys.modules[stock_trainer.__module__], roles.tokenizer.eos_token_id, records)
    trainer = stock_trainer(
        args=stock_config(**options, bf16=False), value_model=roles.critic, callbacks=[clock], **_given(roles)
    )
    with clock.running():
        return _counting_steps(trainer)


def _counting_steps(trainer: Any) -> int:
    steps: list[None] = []
    trainer.optimizer.optimizer.register_step_post_hook(lambda *_: steps.append(None))
    trainer.train()
    return len(steps)


class _StockClock(TrainerCallback):  # type: ignore[misc]
    """Tells the phases of TRL's loop apart: the rollout is one call, and the update begins with a permutation.

    What lies between two iterations (logging, garbage collection) is not counted.
    """

    def __init__(self, module: Any, eos_token_id: int, records: list[Record]) -> None:
        self.module, self.eos_token_id, self.records = module, eos_token_id, records
        self.generate, self.permute = module.batch_generation, np.random.permutation
        self.current: Record = {}
        self.since = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Watch the two functions."""
        with (
            mock.patch.object(self.module, "batch_generation", self._generation),
            mock.patch.object(np.random, "permutation", self._permutation),
        ):
            yield

    def _lap(self, phase: str) -> None:
        now = time.perf_counter()
        self.current[f"seconds/{phase}"], self.since = now - self.since, now

    def _generation(self, model: Any, queries: Any, *rest: Any) -> Any:
        self.current, self.since = {}, time.perf_counter()
        result = self.generate(model, queries, *rest)
        self._lap("rollout")
        responses = result[0][:, queries.shape[1] :]
        before = (responses == self.eos_token_id).cumsum(1) - (responses == self.eos_token_id).long() == 0
        self.current["response_tokens"] = float(before.sum())  # up to the first EOS, which counts
        return result

    def _permutation(self, *arguments: Any) -> Any:
        if "seconds/score" not in self.current:  # of the first epoch
            self._lap("score")
        return self.permute(*arguments)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the record of an iteration."""
        self._lap("update")
        logged = state.log_history[-1]
        names = {"score": "objective/scores", "kl": "objective/kl", "reward": "objective/rlhf_reward"}
        self.records.append(self.current | {name: float(logged[key]) for name, key in names.items()})
