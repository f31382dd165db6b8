"""TRL's PPOTrainer as scripts know it, around the loop: `trainer.ppo` is the `PPO` that does the work.

A plain class. What TRL's has and this one has not is in one table, `compatibility.INSTEAD`.
"""

import logging
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import DataCollatorWithPadding, PreTrainedTokenizerBase, TrainerCallback, set_seed
from transformers.trainer_utils import enable_full_determinism

from rlhf.episodes.plan import EpisodeSource
from rlhf.generation.torch_generator import TorchGenerator
from rlhf.policies.checkpointing import recompute_activations
from rlhf.ppo.trainer import Iteration
from rlhf.trl import checkpoints, compatibility, completions, hub, setup, translate
from rlhf.trl.callbacks import Callbacks
from rlhf.trl.config import PPOConfig
from rlhf.trl.runtime import to_runtime


class PPOTrainer:
    """Proximal policy optimisation of a language model (Schulman et al., 2017; Ziegler et al., 2019).

    Takes what TRL's PPOTrainer takes. `reward_model` may also be a function with TRL's reward signature, or a list of
    modules and functions (weighted by `args.reward_weights`).

    Args:
        args: Options. `trainer.args` is a copy with the batch sizes that follow from others filled in.
        processing_class: The policy's tokenizer.
        model: The policy.
        ref_model: The reference policy; None makes a frozen copy, or switches adapters off where there are some.
        reward_model: Module, function or list of them; not read if `source` is given.
        train_dataset: Rows with `input_ids`, the prompts; not read if `source` is given.
        value_model: A sequence-classification model with one label, or what `load_critic` gives; else a critic is new.
        data_collator: Accepted for TRL's sake; the engine needs no padding.
        eval_dataset: Prompts whose responses are printed now and then, as `args.num_sample_generations` says.
        optimizers: An optimizer and a scheduler to use instead of the configured ones.
        callbacks: Further callbacks of transformers' kind.
        peft_config: Puts adapters on the policy.
        source: Where episodes come from, instead of `train_dataset` and `reward_model`.
        on_iteration: Called behind each iteration, on the main process.

    Raises:
        ValueError: An option is out of range, or a role is missing.
        ModelError: The models do not go together.
        DataError: A prompt cannot be answered.
    """

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
        on_iteration: Callable[[Iteration], object] | None = None,
    ) -> None:
        _check_given(args, source, train_dataset, reward_model, data_collator, eval_dataset)
        enable_full_determinism(args.seed) if args.full_determinism else set_seed(args.seed)
        logging.getLogger("transformers").setLevel(args.get_process_log_level())
        self.processing_class, self.data_collator, self.on_iteration = processing_class, data_collator, on_iteration
        self.reward_model, self.train_dataset, self.eval_dataset = reward_model, train_dataset, eval_dataset
        runtime = to_runtime(args)
        roles = setup.make_roles(model, ref_model, value_model, peft_config)
        longest = None
        if source is None:
            source = setup.make_source(args, processing_class, roles.policy, train_dataset, reward_model, runtime)
            longest = max(map(len, source.prompts))
        section = translate.to_section(args, source.num_prompts, longest, runtime.world_size)
        self.args = translate.filled_in(args, section, runtime.world_size)
        stops = translate.stop_token_ids(args, processing_class)
        generator = TorchGenerator(roles.policy, section.rollout, stops, processing_class.decode, runtime)
        self._generator, self._runtime = generator, runtime
        loop = setup.make_loop(args, optimizers, bf16=runtime.bf16)
        self.ppo = loop(section, roles, source, generator, runtime, on_iteration=self._after_iteration)
        self._name_parts(roles.policy)
        if args.gradient_checkpointing:  # transformers keeps it equal to activation_checkpointing, its new name
            recompute_activations(self.actor_critic, args.gradient_checkpointing_kwargs)
        sharded = self.is_deepspeed_enabled  # DeepSpeed wants all weights in one precision
        setup.prepare_rewards(
            reward_model, self.actor_critic, self.accelerator.device, bf16=runtime.bf16 and not sharded
        )
        self.callbacks = Callbacks(self.args, self.ppo, processing_class, callbacks or [])
        self.hub_model_id: str | None = None
        if self.args.push_to_hub:
            self.init_hf_repo()

    def _name_parts(self, policy: nn.Module) -> None:
        """Give the parts of the loop the names that TRL's trainer has for them."""
        ppo = self.ppo
        self.accelerator, self.optimizer, self.lr_scheduler = ppo.accelerator, ppo.optimizer, ppo.schedule
        self.actor_critic, self.model, self.policy_model = ppo.actor_critic, ppo.model, policy
        self.value_model = ppo.actor_critic.value_model
        self.ref_model = self.accelerator.unwrap_model(ppo.reference).policy if ppo.reference is not None else None
        self.is_deepspeed_enabled = self.accelerator.distributed_type == "DEEPSPEED"
        self.is_fsdp_enabled = False

    def train(self, resume_from_checkpoint: str | os.PathLike[str] | bool | None = None) -> None:
        """Alternate rollouts and updates until every iteration is done.

        Args:
            resume_from_checkpoint: A folder `checkpoint-N` to go on from; True: the newest one in `output_dir`.
        """
        if resume_from_checkpoint:
            checkpoints.load(self.ppo, self.args, self.callbacks, resume_from_checkpoint)
        self.callbacks.tell("on_train_begin")
        self.callbacks.tell("on_epoch_begin")
        self.callbacks.tell("on_step_begin")
        self.ppo.train()
        self.callbacks.tell("on_train_end")

    def _after_iteration(self, iteration: Iteration) -> bool:
        """Report, save and look at responses; return whether a callback wants to stop."""
        callbacks, state = self.callbacks, self.state
        epoch_before = int(state.epoch or 0)
        state.global_step, state.episode = iteration.number + 1, self.ppo.progress.episodes
        state.epoch = iteration.metrics["ppo/epoch"]
        if self.on_iteration is not None and self.accelerator.is_main_process:
            self.on_iteration(iteration)
        callbacks.tell("on_step_end")
        if int(state.epoch) > epoch_before:
            callbacks.tell("on_epoch_end")
        if self.control.should_log:
            self.log(dict(iteration.metrics))
        if self.control.should_save:
            self._save_checkpoint()
        if self._is_time_for_completions(iteration.number):
            self.generate_completions()
        stop = bool(self.control.should_training_stop)
        if not stop and int(state.epoch) > epoch_before:
            callbacks.tell("on_epoch_begin")
        if not stop:
            callbacks.tell("on_step_begin")
        return stop

    def _is_time_for_completions(self, iteration: int) -> bool:
        often = self.args.num_sample_generations
        return often > 0 and iteration % max(1, self.ppo.settings.iterations // often) == 0

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Hand numbers to whoever logs, and keep them in `state.log_history`."""
        self.callbacks.log(logs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the policy and its tokenizer where `from_pretrained` finds them, and the critic beside them."""
        checkpoints.save_models(self.ppo, self.args, self.processing_class, output_dir or self.args.output_dir)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save")

    def _save_checkpoint(self) -> None:
        checkpoints.save(self.ppo, self.args, self.processing_class, self.callbacks)
        self.create_model_card()
        self.callbacks.tell("on_save")
        if self.args.push_to_hub and self.args.hub_strategy != "end":
            self.push_to_hub(commit_message=f"Training in progress, step {self.state.global_step}", blocking=False)

    def generate_completions(self, sampling: bool = False) -> None:
        """Print responses to the prompts of `eval_dataset`, a batch of them, nearly greedily."""
        if self.eval_dataset is None:
            return
        rows = self.eval_dataset.select(range(min(len(self.eval_dataset), self.args.per_device_eval_batch_size)))
        source = setup.make_source(
            self.args, self.processing_class, self.policy_model, rows, self.reward_model, self._runtime
        )
        episodes = completions.sample(source, self.policy_model, self._generator, seed=self.args.seed)
        if self.accelerator.is_main_process:
            completions.show(episodes)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write README.md into `output_dir`."""
        if self.is_world_process_zero():
            hub.write_model_card(self.args, self.actor_critic.config, model_name, dataset_name, tags)

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Create the repository on the Hub."""
        if self.is_world_process_zero():
            self.hub_model_id = hub.create_repository(self.args, token, private)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **card: Any,
    ) -> Any:
        """Save the model and upload it; `card` goes to `create_model_card`."""
        self.callbacks.tell("on_push_begin")
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        assert self.hub_model_id is not None
        self.create_model_card(**{"model_name": self.hub_model_id.rpartition("/")[2], **card})
        return hub.upload(self.args, self.hub_model_id, commit_message, token, revision, blocking)

    def save_state(self) -> None:
        """Write `trainer_state.json` into `output_dir`. To go on later needs a checkpoint: `save_strategy`."""
        if self.is_world_process_zero():
            self.callbacks.saved_state().save_to_json(os.path.join(self.args.output_dir, "trainer_state.json"))

    def add_callback(self, callback: Any) -> None:
        """Add a callback, an object or a class."""
        self.callbacks.handler.add_callback(callback)

    def pop_callback(self, callback: Any) -> Any:
        """Remove a callback and return it."""
        return self.callbacks.handler.pop_callback(callback)

    def remove_callback(self, callback: Any) -> None:
        """Remove a callback."""
        self.callbacks.handler.remove_callback(callback)

    @property
    def callback_handler(self) -> Any:
        """The handler of the callbacks."""
        return self.callbacks.handler

    @property
    def state(self) -> Any:
        """How far the run is, as callbacks read it."""
        return self.callbacks.state

    @property
    def control(self) -> Any:
        """What callbacks ask for."""
        return self.callbacks.control

    def is_world_process_zero(self) -> bool:
        """Whether this is the first process of all."""
        return bool(self.accelerator.is_main_process)

    def is_local_process_zero(self) -> bool:
        """Whether this is the first process of its machine."""
        return bool(self.accelerator.is_local_main_process)

    end = compatibility.end
    get_cp_size = get_sp_size = get_tp_size = compatibility.one
    get_decay_parameter_names = compatibility.get_decay_parameter_names
    get_eval_dataloader = compatibility.get_eval_dataloader
    get_learning_rates = compatibility.get_learning_rates
    get_num_trainable_parameters = compatibility.get_num_trainable_parameters
    get_optimizer_cls_and_kwargs = staticmethod(compatibility.get_optimizer_cls_and_kwargs)
    get_optimizer_group = compatibility.get_optimizer_group
    get_total_train_batch_size = compatibility.get_total_train_batch_size
    get_train_dataloader = compatibility.get_train_dataloader
    log_metrics, save_metrics = compatibility.log_metrics, compatibility.save_metrics
    metrics_format = compatibility.metrics_format
    null_ref_context = compatibility.null_ref_context
    num_examples = compatibility.num_examples

    def __getattr__(self, name: str) -> Any:
        """Say what to use instead of a method that TRL's trainer has and this one has not."""
        raise compatibility.missing(name)


def _check_given(
    args: Any, source: Any, train_dataset: Any, reward_model: Any, data_collator: Any, eval_dataset: Any
) -> None:
    if not isinstance(args, PPOConfig):
        raise ValueError(f"args is a {type(args).__name__}: give a PPOConfig of rlhf.trl")
    if source is None and (train_dataset is None or reward_model is None):
        raise ValueError("train_dataset and reward_model are required, unless source is given")
    if isinstance(eval_dataset, dict):
        raise ValueError(f"eval_dataset is a dict of {', '.join(eval_dataset)}: give one of them")
    if data_collator is not None and not isinstance(data_collator, DataCollatorWithPadding):
        warnings.warn("data_collator has no effect: prompts are read from input_ids, without padding", stacklevel=3)
