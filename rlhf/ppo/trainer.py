"""The PPO trainer: TRL's, with the loop rewritten. The only module of the engine that knows TRL's class.

What stays TRL's and transformers': the constructor's signature, callbacks, logging, model cards and Hub upload. What
is replaced: batch arithmetic, sampling, scoring, the update, saving and resuming. Constructing it does not call TRL's
constructor, which would wrap, shuffle and prepare the models in ways that the loop does not want.
"""

import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl

from rlhf.cpu.freed_memory import keep_freed_memory
from rlhf.episodes.episode import Episode
from rlhf.episodes.rollout import EpisodeSource, Start, plan
from rlhf.generation.rollout_policy import RolloutPolicy
from rlhf.generation.sampler import Sampler, SamplingParameters
from rlhf.planning.arithmetic import of_arguments
from rlhf.policies.actor_critic import ActorCritic, TokenOutputs
from rlhf.ppo import checkpoint, setup
from rlhf.ppo.advantages import ESTIMATORS
from rlhf.ppo.batch import Batch, Microbatch, collate
from rlhf.ppo.metrics import print_episodes, rollout_metrics
from rlhf.ppo.scoring import estimate_advantages, evaluate_models, penalise_unfinished, whole_groups
from rlhf.ppo.update import UpdateParameters, UpdateStatistics, update
from rlhf.trl import callback_support
from rlhf.trl.bridge import TrlPPOTrainer, prepare_deepspeed
from rlhf.trl.config import PPOConfig


@dataclass(frozen=True)
class Iteration:
    """What one iteration produced, for whoever looks on."""

    number: int
    episodes: list[Episode]
    batch: Batch | None  # None if no episode could be scored
    metrics: dict[str, float]


class PPOTrainer(TrlPPOTrainer):  # type: ignore[misc]
    """Proximal policy optimisation of a language model (Schulman et al., 2017; Ziegler et al., 2019).

    Takes what TRL's PPOTrainer takes. `reward_model` may also be a function with TRL's reward signature, or a list of
    modules and functions (weighted by `args.reward_weights`).

    Args:
        args: Options.
        processing_class: The policy's tokenizer.
        model: The policy.
        ref_model: The reference policy; None makes a frozen copy, or switches adapters off where there are some.
        reward_model: Module, function or list of them; not read if `source` is given.
        train_dataset: Rows with `input_ids`, the prompts; not read if `source` is given.
        value_model: A sequence-classification model with one label, or what `load_critic` gives; else a critic is new.
        data_collator: Accepted for TRL's sake; the engine needs no padding.
        eval_dataset: Prompts whose responses are logged now and then, as `args.num_sample_generations` says.
        optimizers: An optimizer and a scheduler to use instead of the configured ones.
        callbacks: Further callbacks of transformers' kind.
        peft_config: Puts adapters on the policy.
        source: Where episodes come from, instead of `train_dataset` and `reward_model`.
        on_iteration: Called behind each iteration, on the main process.
    """

    state: callback_support.PPOState
    control: TrainerControl
    reference: Any  # the reference policy, prepared; absent where it is the policy with its adapters off

    def __init__(
        self,
        args: PPOConfig,
        processing_class: PreTrainedTokenizerBase,
        model: nn.Module,
        ref_model: nn.Module | None = None,
        reward_model: Any = None,
        train_dataset: Any = None,
        value_model: nn.Module | None = None,
        data_collator: Any = None,
        eval_dataset: Any = None,
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
        callbacks: list[TrainerCallback] | None = None,
        peft_config: Any = None,
        *,
        source: EpisodeSource | None = None,
        on_iteration: Callable[[Iteration], None] | None = None,
    ) -> None:
        set_seed(args.seed)
        self.args: PPOConfig = args
        self.processing_class = processing_class
        self.reward_model, self.train_dataset, self.eval_dataset = reward_model, train_dataset, eval_dataset
        self.on_iteration = on_iteration
        self.sample_generations_freq = 1
        self.lengths = setup.make_lengths(args, model)
        if source is None and (train_dataset is None or reward_model is None):
            raise ValueError("train_dataset and reward_model are required, unless source is given")
        self.source: EpisodeSource = source or self._dataset_source(train_dataset)
        self.stop_token_ids = setup.stop_token_ids(args, processing_class)
        self._prepare_models(model, ref_model, value_model, peft_config, optimizers)
        callback_support.install(self, callbacks or [])

    def train(self, resume_from_checkpoint: str | None = None) -> None:
        """Alternate rollouts and updates until every iteration is done."""
        if resume_from_checkpoint is not None:
            checkpoint.load(self, resume_from_checkpoint)
        self.state.max_steps = self.args.num_total_batches
        self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
        for iteration in range(self.state.global_step, self.args.num_total_batches):
            clock = [time.perf_counter()]
            episodes = self.rollout(iteration)
            clock.append(time.perf_counter())
            batch = self.score(episodes)
            clock.append(time.perf_counter())
            statistics = self.update(batch, iteration) if batch is not None else None
            clock.append(time.perf_counter())
            self.arithmetic.check(episodes, batch.lengths.tolist() if batch is not None else [], statistics)
            self.track(iteration, episodes, batch, statistics, np.diff(clock).tolist())
            if self.control.should_save:
                self._save_checkpoint(self.model, trial=None)
            if self.args.num_sample_generations > 0 and iteration % self.sample_generations_freq == 0:
                self.generate_completions()
            if self.control.should_training_stop:
                break
        self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)

    def rollout(self, iteration: int) -> list[Episode]:
        """Play the episodes of an iteration; every process gets all of them, in the order of the plan."""
        args, rank, world = self.args, self.accelerator.process_index, self.accelerator.num_processes
        starts = plan(self.source.num_prompts, args.batch_size, args.samples_per_prompt, iteration, args.seed)
        own = self.source.collect(self._sampler(), starts[rank::world], seed=args.seed, iteration=iteration)
        self.rollout_policy.release()
        if world == 1:
            return own
        gathered = gather_object(list(zip(range(rank, len(starts), world), own, strict=True)))
        return [episode for _, episode in sorted(gathered, key=lambda pair: pair[0])]

    def score(self, episodes: Sequence[Episode]) -> Batch | None:
        """Turn episodes into a batch with advantages; those that nobody could score are left out."""
        args = self.args
        scored = [episode for episode in episodes if np.isfinite(episode.score)]
        if ESTIMATORS[args.advantage].compares_samples:
            scored = whole_groups(scored, args.samples_per_prompt)
        if not scored:
            return None
        weights = next(self.actor_critic.parameters())
        batch = collate(scored, torch.promote_types(weights.dtype, torch.float32), self.accelerator.device)
        self.model.eval()
        evaluate_models(batch, self._evaluate_policy, self._evaluate_reference, self.accelerator, self._budget(batch))
        penalise_unfinished(batch, args.missing_stop_action, args.missing_stop_value)
        estimate_advantages(
            batch,
            estimator=args.advantage,
            kl_coefficient=self.kl_controller.coefficient,
            gamma=args.gamma,
            gae_lambda=args.lam,
            whiten_rewards=args.whiten_rewards,
            whiten_advantages=args.whiten_advantages,
            bootstrap_truncated=args.bootstrap_truncated,
        )
        return batch

    def update(self, batch: Batch, iteration: int) -> UpdateStatistics:
        """Improve policy and critic on a batch."""
        args = self.args
        parameters = UpdateParameters(
            epochs=args.num_ppo_epochs,
            minibatches=args.num_mini_batches,
            microbatch_tokens=self._budget(batch),
            temperature=args.temperature,
            clip_range=args.cliprange,
            value_clip_range=args.cliprange_value,
            value_coefficient=args.vf_coef,
            entropy_coefficient=args.entropy_coefficient,
            max_gradient_norm=args.max_grad_norm or None,
            uses_critic=ESTIMATORS[args.advantage].uses_critic,
            seed=int(np.random.SeedSequence((args.seed, iteration)).generate_state(1)[0]),
        )
        return update(self.model, self.optimizer, batch, parameters, self.accelerator)

    def track(
        self,
        iteration: int,
        episodes: list[Episode],
        batch: Batch | None,
        statistics: UpdateStatistics | None,
        seconds: Sequence[float],
    ) -> None:
        """Report an iteration, then move learning rate and KL coefficient on."""
        metrics: dict[str, float] = {"unscored_episodes": float(len(episodes))}
        if batch is not None and statistics is not None:
            metrics = rollout_metrics(episodes, batch, self.kl_controller.coefficient) | statistics.means()
            self.kl_controller.update(metrics["kl"], len(batch))
        metrics["learning_rate"] = float(self.lr_scheduler.get_last_lr()[0])
        metrics |= {f"seconds/{name}": s for name, s in zip(("rollout", "score", "update"), seconds, strict=True)}
        metrics["samples_per_second"] = len(episodes) / sum(seconds)
        metrics = {f"ppo/{name}": value for name, value in metrics.items()}
        with warnings.catch_warnings():
            # The schedule moves once an iteration, also before the first step where nobody scored the first episodes.
            warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step\(\)`")
            self.lr_scheduler.step()
        self.state.global_step = iteration + 1
        self.state.episode += len(episodes)
        self.state.epoch = self.state.episode / (
            (self.source.num_prompts or len(episodes)) * self.args.samples_per_prompt
        )
        if self.on_iteration is not None and self.accelerator.is_main_process:
            self.on_iteration(Iteration(iteration, episodes, batch, metrics))
        self.control = self.callback_handler.on_step_end(self.args, self.state, self.control)
        if self.control.should_log:
            self.log(dict(metrics))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the policy and its tokenizer where `from_pretrained` finds them, and the critic beside them."""
        checkpoint.save_models(self, output_dir or self.args.output_dir)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save")

    def generate_completions(self, sampling: bool = False) -> None:
        """Print responses to the prompts of `eval_dataset`, a batch of them, nearly greedily."""
        if self.eval_dataset is None:
            return
        rows = self.eval_dataset.select(range(min(len(self.eval_dataset), self.args.per_device_eval_batch_size)))
        starts = [Start(index, sample_index=0, seed=0) for index in range(len(rows))]
        sampler = self._sampler(temperature=0.01)
        episodes = self._dataset_source(rows).collect(sampler, starts, seed=self.args.seed, iteration=0)
        if self.accelerator.is_main_process:
            print_episodes(episodes)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        checkpoint.save(self, os.path.join(self.args.output_dir, f"checkpoint-{self.state.global_step}"))
        self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _dataset_source(self, dataset: Any) -> EpisodeSource:
        return setup.make_token_source(self.args, self.processing_class, self.lengths, dataset, self.reward_model)

    def _prepare_models(
        self, model: nn.Module, ref_model: Any, value_model: Any, peft_config: Any, optimizers: tuple[Any, Any]
    ) -> None:
        args = self.args
        self.policy_model = setup.make_policy(model, peft_config)
        self.ref_model = setup.make_reference(self.policy_model, ref_model)
        self.actor_critic = setup.make_actor_critic(args, self.policy_model, value_model)
        keep_freed_memory()  # how, depends on compile_kernels, which make_actor_critic has just set
        self.value_model = self.actor_critic.value_model
        self.accelerator = Accelerator(deepspeed_plugin=getattr(args, "deepspeed_plugin", None))
        setup.set_batch_sizes(args, self.source.num_prompts, self.accelerator.num_processes)
        self.arithmetic = of_arguments(args, self.source.num_prompts)
        optimizer = optimizers[0] or setup.make_optimizer(args, self.actor_critic)
        self.lr_scheduler = optimizers[1] or setup.make_scheduler(args, optimizer, args.num_total_batches)
        self.model, self.optimizer = self.accelerator.prepare(self.actor_critic, optimizer)
        self.is_deepspeed_enabled = self.accelerator.distributed_type == "DEEPSPEED"
        self.is_fsdp_enabled = False
        if self.ref_model is not None:
            self.reference = ActorCritic(self.ref_model, None, bf16=bool(args.bf16)).to(self.accelerator.device)
            if self.is_deepspeed_enabled:
                self.reference = prepare_deepspeed(self.reference, self.accelerator)
        setup.prepare_frozen(args, self.actor_critic, self.ref_model, self.reward_model, self.accelerator)
        self.kl_controller = args.make_kl_controller()
        self.sample_generations_freq = max(1, args.num_total_batches // max(1, args.num_sample_generations))
        plugin = self.accelerator.state.deepspeed_plugin
        sharded = plugin is not None and plugin.zero_stage == 3
        self.rollout_policy = RolloutPolicy(self.policy_model, bf16=bool(args.bf16), sharded=sharded)

    def _sampler(self, temperature: float | None = None) -> Sampler:
        args = self.args
        parameters = SamplingParameters(
            stop_token_ids=self.stop_token_ids,
            temperature=temperature or args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            stop_strings=tuple(args.stop_strings),
            batch_size=args.local_rollout_forward_batch_size,
        )
        return Sampler(self.rollout_policy.refresh().eval(), parameters, self.processing_class.decode)

    def _budget(self, batch: Batch) -> int:
        """Tokens of a microbatch; by default what `per_device_train_batch_size` of the longest rows take."""
        rows = self.args.per_device_train_batch_size
        return self.args.microbatch_tokens or rows * int(batch.lengths.max())

    def _evaluate_policy(self, microbatch: Microbatch) -> TokenOutputs:
        outputs: TokenOutputs = self.model(microbatch, self.args.temperature)
        return outputs

    def _evaluate_reference(self, microbatch: Microbatch) -> TokenOutputs:
        if self.ref_model is None:  # the policy with its adapters switched off
            outputs: TokenOutputs = self.model(microbatch, self.args.temperature, reference=True)
        else:
            outputs = self.reference(microbatch, self.args.temperature)
        return outputs
