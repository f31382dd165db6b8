"""The update: epochs of minibatches over one rollout. One minibatch is one optimizer step.

Losses are summed over tokens and divided by the minibatch's tokens over all processes, so neither the cut into
microbatches nor the number of processes changes the gradient.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from rlhf.config.ppo import PPOSectionConfig
from rlhf.launch.deepspeed import backward_and_step
from rlhf.packing.microbatch import Microbatch, microbatches
from rlhf.policies.actor_critic import TokenOutputs
from rlhf.ppo.advantages import ESTIMATORS
from rlhf.ppo.batch import AdvantagedRollout
from rlhf.ppo.clipping import clipped_step
from rlhf.ppo.losses import approximate_kl, importance_ratio, policy_loss, value_loss

SUMMED = ("loss/policy", "loss/value", "clip_fraction", "value_clip_fraction", "approx_kl", "ratio")


@dataclass
class UpdateStatistics:
    """Token-weighted sums over all optimizer steps; `means` turns them into metrics."""

    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUMMED, 0.0))
    tokens: int = 0
    microbatches: int = 0  # of this process
    steps: int = 0
    skipped_steps: int = 0
    gradient_norms: list[float] = field(default_factory=list)
    ratio_max: float = 0.0

    def count_step(self, norm: float) -> None:
        """Count an optimizer step; one whose gradient is not finite was skipped."""
        self.steps += 1
        if math.isfinite(norm):
            self.gradient_norms.append(norm)
        else:
            self.skipped_steps += 1

    def means(self) -> dict[str, float]:
        """Return the metrics of the whole update."""
        means = {name: total / max(self.tokens, 1) for name, total in self.sums.items()}
        norms = self.gradient_norms or [0.0]
        return {
            **means,
            "ratio_max": self.ratio_max,
            "gradient_norm": sum(norms) / len(norms),
            "optimizer_steps": float(self.steps),
            "skipped_steps": float(self.skipped_steps),
        }


def minibatch_rows(size: int, epochs: int, minibatches: int, seed: int) -> Iterator[list[int]]:
    """Yield the rows of each minibatch: every epoch is a fresh permutation, cut into equal parts.

    The permutation is the same on every process. Rows that no minibatch would get (a batch from which unscored
    episodes were dropped) make the first minibatches one row longer.
    """
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(size, generator=generator)
        for part in order.tensor_split(minibatches):
            if len(part):
                yield part.tolist()


def microbatch_loss(
    outputs: TokenOutputs, batch: AdvantagedRollout, microbatch: Microbatch, settings: PPOSectionConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Summed loss of a microbatch, and sums over its tokens for the metrics."""
    rows, mask = microbatch.rows, batch.mask[microbatch.rows]
    old_logprobs, advantages = batch.logprobs[rows][mask], batch.advantages[rows][mask]
    ratio = importance_ratio(outputs.logprobs, old_logprobs)
    policy_losses, clipped = policy_loss(ratio, advantages, settings.clip_range)
    loss = policy_losses.sum() - settings.entropy_coefficient * outputs.entropies.sum()
    sums = {
        "loss/policy": policy_losses.detach().sum(),
        "clip_fraction": clipped.sum(),
        "approx_kl": approximate_kl(outputs.logprobs.detach(), old_logprobs).sum(),
        "ratio": ratio.detach().sum(),
        "ratio_max": ratio.detach().max(),
    }
    if ESTIMATORS[settings.advantage].uses_critic:
        old_values, returns = batch.values[rows][mask], batch.returns[rows][mask]
        value_losses, value_clipped = value_loss(outputs.values, old_values, returns, settings.value_clip_range)
        loss = loss + settings.value_coefficient * value_losses.sum()
        sums |= {"loss/value": value_losses.detach().sum(), "value_clip_fraction": value_clipped.sum()}
    return loss, sums


def update(
    model: Any,
    optimizer: torch.optim.Optimizer,
    batch: AdvantagedRollout,
    settings: PPOSectionConfig,
    accelerator: Accelerator,
    *,
    seed: int,
) -> UpdateStatistics:
    """Take `epochs * minibatches` optimizer steps on a rollout.

    Args:
        model: The prepared `ActorCritic`.
        optimizer: The prepared optimizer.
        batch: The rollout.
        settings: Section `ppo`.
        accelerator: Prepared `model` and `optimizer`.
        seed: Of the permutations.
    """
    statistics = UpdateStatistics()
    rank, world = accelerator.process_index, accelerator.num_processes
    model.train()
    for rows in minibatch_rows(len(batch), settings.epochs, settings.minibatches, seed):
        parts = list(microbatches(batch, rows, settings.microbatch_tokens, rank, world))
        tokens = int(batch.mask[rows].sum())
        # Accelerate and DeepSpeed average gradients over processes; the sum over tokens is wanted.
        scale = world / tokens
        norm = None
        for number, microbatch in enumerate(parts):
            last = number + 1 == len(parts)
            with _communicating(accelerator, model, last=last):
                outputs = model(microbatch, settings.rollout.temperature, entropy=settings.entropy_coefficient != 0)
                loss, sums = microbatch_loss(outputs, batch, microbatch, settings)
                norm = _backward(accelerator, model, loss * (scale if microbatch.counts else 0.0), last=last)
            if microbatch.counts:
                _add(statistics, sums)
        statistics.tokens += tokens
        statistics.microbatches += len(parts)
        if norm is None:
            norm = _step(model, optimizer, settings.max_gradient_norm)
        statistics.count_step(norm)
    _sum_over_processes(statistics, accelerator)
    return statistics


@contextmanager
def _communicating(accelerator: Accelerator, model: Any, *, last: bool) -> Iterator[None]:
    """Hold back communication until the last microbatch of a minibatch; DeepSpeed does so itself."""
    if last or accelerator.num_processes == 1 or accelerator.distributed_type == "DEEPSPEED":
        yield
    else:
        with accelerator.no_sync(model):
            yield


def _backward(accelerator: Accelerator, model: Any, loss: Tensor, *, last: bool) -> float | None:
    """Run a backward pass; return the gradient's norm if the step was taken along with it, by DeepSpeed."""
    if accelerator.distributed_type == "DEEPSPEED":
        return backward_and_step(model, loss, last=last)
    accelerator.backward(loss)
    return None


def _step(model: Any, optimizer: torch.optim.Optimizer, limit: float | None) -> float:
    """Clip and step; a gradient that is not finite costs the step, not the run. Returns its norm."""
    trained = [parameter for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in trained])
    if norm.isfinite():
        clipped_step(optimizer, trained, norm, limit)
    optimizer.zero_grad(set_to_none=True)
    return float(norm)


def _add(statistics: UpdateStatistics, sums: dict[str, Tensor]) -> None:
    statistics.ratio_max = max(statistics.ratio_max, float(sums.pop("ratio_max")))
    for name, value in sums.items():
        statistics.sums[name] += float(value)


def _sum_over_processes(statistics: UpdateStatistics, accelerator: Accelerator) -> None:
    if accelerator.num_processes == 1:
        return
    local = torch.tensor([statistics.sums[name] for name in SUMMED], dtype=torch.float64, device=accelerator.device)
    total = accelerator.reduce(local, reduction="sum")
    statistics.sums = dict(zip(SUMMED, total.tolist(), strict=True))
    largest = torch.tensor([statistics.ratio_max], dtype=torch.float64, device=accelerator.device)
    statistics.ratio_max = float(accelerator.gather(largest).max())
