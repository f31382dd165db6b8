"""Proximal policy optimisation of a language model: the loop.

    for iteration in ...: rollout -> score -> estimate_advantages -> update -> track

It reads section `ppo` of the configuration as it stands, and knows neither how models are loaded nor where metrics go.
(Schulman et al., 2017; Ziegler et al., 2019.)
"""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object, set_seed

from rlhf.config.ppo import PPOSectionConfig
from rlhf.episodes.episode import Episode
from rlhf.episodes.plan import EpisodeSource, plan
from rlhf.generation.generator import Generator
from rlhf.launch.accelerator import make_accelerator
from rlhf.launch.deepspeed import shard_frozen
from rlhf.launch.runtime import Runtime
from rlhf.packing.microbatch import Microbatch
from rlhf.planning.arithmetic import of_section
from rlhf.policies.actor_critic import ActorCritic, TokenOutputs
from rlhf.ppo.batch import AdvantagedRollout, ScoredRollout, collate
from rlhf.ppo.kl import kl_controller
from rlhf.ppo.metrics import left_out, rollout_metrics
from rlhf.ppo.optimizer import make_optimizer, make_schedule
from rlhf.ppo.roles import Roles, make_actor_critic, make_reference, store_as_computed
from rlhf.ppo.scoring import estimate_advantages, score, trainable
from rlhf.ppo.update import UpdateStatistics, update


@dataclass(frozen=True)
class Iteration:
    """What one iteration produced, for whoever looks on."""

    number: int  # from 0; what people see is counted from 1
    episodes: list[Episode]
    batch: AdvantagedRollout | None  # of the `trainable` episodes; None if there are none
    metrics: dict[str, float]


@dataclass
class Progress:
    """How far a run is."""

    iteration: int = 0  # finished ones
    episodes: int = 0  # played ones


class PPO:
    """The loop, its models and its optimizer.

    Args:
        settings: Section `ppo`.
        roles: Policy, critic, reference.
        source: Where episodes come from.
        generator: Samples the policy's responses.
        runtime: Where and in which precision.
        seed: Governs the order of prompts, the noise of responses and the minibatches.
        deepspeed: From `deepspeed_config`, if ZeRO shards the models.
        optimizer: Makes another optimizer than AdamW from the actor-critic.
        schedule: Makes another schedule from the optimizer and the number of iterations.
        on_iteration: Called behind each iteration, on every process; True ends the run.
        on_phase: Called with the name of each part of an iteration when it begins.
    """

    def __init__(
        self,
        settings: PPOSectionConfig,
        roles: Roles,
        source: EpisodeSource,
        generator: Generator,
        runtime: Runtime,
        *,
        seed: int = 0,
        deepspeed: dict[str, Any] | None = None,
        optimizer: Callable[[ActorCritic], torch.optim.Optimizer] | None = None,
        schedule: Callable[[torch.optim.Optimizer, int], Any] | None = None,
        on_iteration: Callable[[Iteration], bool | None] | None = None,
        on_phase: Callable[[str], None] = lambda phase: None,
    ) -> None:
        set_seed(seed)  # rewards and environments of the user's may draw from any generator
        self.settings, self.seed, self.on_iteration, self.on_phase = settings, seed, on_iteration, on_phase
        self.source, self.generator = source, generator
        self.progress = Progress()
        self.kl_controller = kl_controller(settings.kl)
        self.actor_critic = make_actor_critic(settings, roles, runtime, seed=seed)
        reference = make_reference(roles)
        self.accelerator = make_accelerator(runtime, deepspeed)
        self.arithmetic = of_section(settings, self.accelerator.num_processes, source.num_prompts)
        made = optimizer(self.actor_critic) if optimizer else make_optimizer(settings, self.actor_critic)
        self.schedule = schedule(made, settings.iterations) if schedule else make_schedule(settings, made)
        self.model, self.optimizer = self.accelerator.prepare(self.actor_critic, made)
        self.reference: Any = None  # the policy with its adapters switched off
        if reference is not None:
            frozen = ActorCritic(reference, None, runtime).to(self.accelerator.device)
            self.reference = shard_frozen(frozen, self.accelerator)
        if runtime.bf16 and deepspeed is None:  # DeepSpeed wants all weights in one precision
            store_as_computed(roles.policy, [reference])

    def train(self) -> None:
        """Alternate rollouts and updates until every iteration is done."""
        for iteration in range(self.progress.iteration, self.settings.iterations):
            clock = [time.perf_counter()]
            self.on_phase("rollout")
            episodes = self.rollout(iteration)
            clock.append(time.perf_counter())
            self.on_phase("scoring")
            scored = self.score(episodes)
            batch = estimate_advantages(scored, self.settings) if scored is not None else None
            clock.append(time.perf_counter())
            self.on_phase("update")
            statistics = self.update(batch, iteration) if batch is not None else None
            clock.append(time.perf_counter())
            self.arithmetic.check(episodes, batch.lengths.tolist() if batch is not None else [], statistics)
            if self.track(iteration, episodes, batch, statistics, np.diff(clock).tolist()):
                break

    def rollout(self, iteration: int) -> list[Episode]:
        """Play the episodes of an iteration; every process gets all of them, in the order of the plan."""
        settings, rank, world = self.settings, self.accelerator.process_index, self.accelerator.num_processes
        starts = plan(
            self.source.num_prompts,
            settings.episodes_per_iteration,
            settings.samples_per_prompt,
            iteration,
            self.seed,
        )
        self.generator.update()
        own = self.source.collect(self.generator, starts[rank::world], seed=self.seed, iteration=iteration)
        self.generator.release()
        if world == 1:
            return own
        gathered = gather_object(list(zip(range(rank, len(starts), world), own, strict=True)))
        return [episode for _, episode in sorted(gathered, key=lambda pair: pair[0])]

    def score(self, episodes: Sequence[Episode]) -> ScoredRollout | None:
        """Ask policy, critic and reference, and make one reward for each token.

        Episodes that nobody could score are left out; None if there are no others.
        """
        known = trainable(episodes, self.settings)
        if not known:
            return None
        weights = next(self.actor_critic.parameters())
        rollout = collate(known, torch.promote_types(weights.dtype, torch.float32), self.accelerator.device)
        self.model.eval()
        return score(
            rollout,
            self._ask_policy,
            self._ask_reference,
            self.settings,
            kl_coefficient=self.kl_controller.coefficient,
            accelerator=self.accelerator,
        )

    def update(self, batch: AdvantagedRollout, iteration: int) -> UpdateStatistics:
        """Improve policy and critic on a rollout."""
        seed = int(np.random.SeedSequence((self.seed, iteration)).generate_state(1)[0])
        return update(self.model, self.optimizer, batch, self.settings, self.accelerator, seed=seed)

    def track(
        self,
        iteration: int,
        episodes: list[Episode],
        batch: AdvantagedRollout | None,
        statistics: UpdateStatistics | None,
        seconds: Sequence[float],
    ) -> bool:
        """Move KL coefficient and learning rate on, and report; return whether whoever looks on wants to stop."""
        metrics = left_out(episodes)
        if batch is not None and statistics is not None:
            metrics = rollout_metrics(episodes, batch) | statistics.means()
            metrics["kl_coefficient"] = self.kl_controller.coefficient
            metrics["kl_penalty"] = metrics["kl_coefficient"] * metrics["kl"]
            self.kl_controller.update(metrics["kl"], len(batch))
        metrics["learning_rate"] = float(self.schedule.get_last_lr()[0])
        metrics |= {f"seconds/{name}": s for name, s in zip(("rollout", "score", "update"), seconds, strict=True)}
        metrics["samples_per_second"] = len(episodes) / sum(seconds)
        with warnings.catch_warnings():
            # The schedule moves once an iteration, also before the first step where nobody scored the first episodes.
            warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step\(\)`")
            self.schedule.step()
        self.progress.iteration = iteration + 1
        self.progress.episodes += len(episodes)
        prompts = self.source.num_prompts or len(episodes)
        metrics["epoch"] = self.progress.episodes / (prompts * self.settings.samples_per_prompt)
        named = {f"ppo/{name}": value for name, value in metrics.items()}
        return bool(self.on_iteration and self.on_iteration(Iteration(iteration, episodes, batch, named)))

    def _ask_policy(self, microbatch: Microbatch) -> TokenOutputs:
        outputs: TokenOutputs = self.model(microbatch, self.settings.rollout.temperature)
        return outputs

    def _ask_reference(self, microbatch: Microbatch) -> TokenOutputs:
        temperature = self.settings.rollout.temperature
        if self.reference is None:  # the policy with its adapters switched off
            outputs: TokenOutputs = self.model(microbatch, temperature, reference=True)
        else:
            outputs = self.reference(microbatch, temperature)
        return outputs
