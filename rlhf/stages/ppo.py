"""The PPO stage: the SFT policy plays episodes in a text environment and learns from their rewards.

Reads the SFT folder (or the configured model), this run's reward model where it is a component of the score, and the
environment; writes a policy folder that `from_pretrained` loads, and the critic beside it. The loop itself is
`rlhf.ppo.trainer`.
"""

import tempfile
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from envs.registry import make_text_env
from envs.vector import TextVectorEnv
from rlhf.config.ppo import PPOSectionConfig
from rlhf.config.schema import Config
from rlhf.data import load_rows
from rlhf.episodes.rollout import EnvironmentSource, Lengths
from rlhf.errors import StageError
from rlhf.files.run_folder import RunFolder
from rlhf.launch.deepspeed import barrier, deepspeed_config, forget_zero, full_state, is_main_process, world_size
from rlhf.models.adapters import add_adapters
from rlhf.models.load import load_policy, load_sequence_classifier
from rlhf.models.precision import prepare_for_training, uses_bfloat16
from rlhf.policies.critics import load_critic, policy_part, save_critic
from rlhf.ppo.advantages import ESTIMATORS
from rlhf.ppo.metrics import rollout_rows
from rlhf.ppo.trainer import Iteration, PPOTrainer
from rlhf.scoring.scorer import build_scorer
from rlhf.stages.base_model import policy_folder, policy_tokenizer
from rlhf.stages.supervised import Trained, save
from rlhf.tracking.callback import attach
from rlhf.tracking.progress import StageProgress
from rlhf.tracking.tracker import Tracker
from rlhf.trl.config import PPOConfig


def run(config: Config, folder: RunFolder, tracker: Tracker) -> dict[str, Any]:
    """Train the policy; return what the manifest keeps."""
    assert config.ppo is not None, "the pipeline runs configured stages only"
    section = config.ppo
    tokenizer = policy_tokenizer(config, folder)
    policy = make_policy(config, folder, tokenizer)
    prepare_for_training(policy, config.model, sharded=config.distributed.zero is not None)
    critic = make_critic(config, folder, tokenizer, policy)
    source = make_source(config, folder, tokenizer, policy)  # models are loaded before DeepSpeed is set up, whole
    with tempfile.TemporaryDirectory() as scratch:
        trainer = PPOTrainer(
            make_arguments(config, scratch),
            tokenizer,
            policy,
            value_model=critic,
            source=source,
            on_iteration=lambda iteration: log_iteration(iteration, tracker),
        )
        attach(trainer, tracker, "ppo", StageProgress("ppo", unit="iterations"))
        trainer.train()
        save_models(trainer, config, folder, tokenizer)
    last = {key: value for key, value in trainer.state.log_history[-1].items() if key in ("ppo/score", "ppo/kl")}
    return {"iterations": section.iterations, "episodes": trainer.state.episode, **last}


def make_policy(config: Config, folder: RunFolder, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    """Load the policy that the SFT stage left, with fresh adapters if the model is fine-tuned through them."""
    policy: nn.Module = load_policy(config.model, tokenizer, folder=policy_folder(config, folder), seed=config.seed)
    if config.model.lora is None:
        return policy
    policy = add_adapters(policy, config.model.lora, "language_model", seed=config.seed, dropout=False)
    return policy


def make_critic(config: Config, folder: RunFolder, tokenizer: PreTrainedTokenizerBase, policy: nn.Module) -> Any:
    """Load the critic from the configured origin; None where the trainer makes a new one on the policy's trunk."""
    assert config.ppo is not None
    section = config.ppo.critic
    if not ESTIMATORS[config.ppo.advantage].uses_critic:
        return None
    if section.type != "separate":
        return load_critic(section.path, policy) if section.path is not None else None
    if section.path is None and section.init == "policy":
        trunk = load_policy(config.model, tokenizer, folder=policy_folder(config, folder), seed=config.seed)
        critic: Any = load_sequence_classifier(trunk, tokenizer, seed=config.seed)
        nn.init.zeros_(critic.score.weight)  # the first values are 0
        return critic
    if section.path is not None:
        origin: Any = section.path
        critic = load_critic(origin)
    else:
        origin = config.ppo.rewards["reward_model"].path or folder.reward
        critic = load_sequence_classifier(origin, tokenizer, seed=config.seed)
    if critic.config.vocab_size != len(tokenizer) and critic.get_input_embeddings().num_embeddings < len(tokenizer):
        raise StageError(
            f"the critic is to start from {origin}, which has another vocabulary than the policy: a critic reads the "
            "policy's tokens. Set ppo.critic.init to policy and ppo.critic.path to null."
        )
    return critic


def make_source(
    config: Config, folder: RunFolder, tokenizer: PreTrainedTokenizerBase, policy: Any
) -> EnvironmentSource:
    """Build the environments and what scores their episodes."""
    assert config.ppo is not None
    section = config.ppo
    kwargs: dict[str, Any] = dict(section.environment.kwargs)
    if section.data is not None:
        rows = load_rows(section.data, "prompts").train
        kwargs["prompts"] = [{"prompt": row.prompt, **row.columns} for row in rows]
    count = section.episodes_per_iteration // world_size()
    turns = section.environment.max_turns
    environments = [make_text_env(section.environment.id, max_episode_steps=turns, **kwargs) for _ in range(count)]
    lengths = Lengths(
        max_prompt_tokens=section.rollout.max_prompt_tokens,
        max_response_tokens=section.rollout.max_response_tokens,
        min_response_tokens=section.rollout.min_response_tokens,
        max_turns=turns,
        max_total_tokens=getattr(policy.config, "max_position_embeddings", None),
    )
    scorer = build_scorer(config, folder, policy)
    return EnvironmentSource(TextVectorEnv(environments, scorer), tokenizer, lengths, section.rollout.stop_strings)


def make_arguments(config: Config, output_dir: str) -> PPOConfig:
    """Translate the section into the trainer's options."""
    assert config.ppo is not None
    section = config.ppo
    bf16 = uses_bfloat16(config.model)
    return PPOConfig(
        output_dir=output_dir,
        seed=config.seed,
        total_episodes=section.iterations * section.episodes_per_iteration,
        per_device_train_batch_size=section.episodes_per_iteration // world_size(),
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        deepspeed=deepspeed_config(config.distributed, bf16=bf16, max_gradient_norm=section.max_gradient_norm),
        **_rollout_options(section),
        **_reward_options(section),
        **_update_options(section),
    )


def _rollout_options(section: PPOSectionConfig) -> dict[str, Any]:
    rollout = section.rollout
    return {
        "samples_per_prompt": section.samples_per_prompt,
        "local_rollout_forward_batch_size": rollout.batch_size,
        "response_length": rollout.max_response_tokens,
        "min_response_length": rollout.min_response_tokens,
        "temperature": rollout.temperature,
        "top_k": rollout.top_k,
        "top_p": rollout.top_p,
        "stop_strings": tuple(rollout.stop_strings),
        "stop_token": "eos",
    }


def _reward_options(section: PPOSectionConfig) -> dict[str, Any]:
    return {
        "missing_stop_action": section.missing_stop.action,
        "missing_stop_value": section.missing_stop.value,
        "kl_coef": section.kl.coefficient,
        "kl_controller": section.kl.controller,
        "kl_target": section.kl.target,
        "kl_horizon": section.kl.horizon,
        "advantage": section.advantage,
        "gamma": section.gamma,
        "lam": section.gae_lambda,
        "whiten_rewards": section.whiten_rewards,
        "whiten_advantages": section.whiten_advantages,
        "bootstrap_truncated": section.bootstrap_truncated,
    }


def _update_options(section: PPOSectionConfig) -> dict[str, Any]:
    return {
        "num_ppo_epochs": section.epochs,
        "num_mini_batches": section.minibatches,
        "microbatch_tokens": section.microbatch_tokens,
        "compile_kernels": section.compile_kernels,
        "critic": section.critic.type,
        "critic_learning_rate": section.critic.learning_rate,
        "cliprange": section.clip_range,
        "cliprange_value": section.value_clip_range,
        "vf_coef": section.value_coefficient,
        "entropy_coefficient": section.entropy_coefficient,
        "learning_rate": section.learning_rate,
        "lr_scheduler_type": "linear" if section.scheduler == "linear" else "constant_with_warmup",
        "warmup_steps": section.warmup_iterations,
        "weight_decay": section.weight_decay,
        "max_grad_norm": section.max_gradient_norm or 0.0,
    }


def log_iteration(iteration: Iteration, tracker: Tracker) -> None:
    """Keep the iteration's episodes; its metrics go through the trainer's callbacks."""
    tracker.log_rollouts(rollout_rows(iteration.episodes, iteration.batch, iteration.number), iteration.number)


def save_models(trainer: PPOTrainer, config: Config, folder: RunFolder, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the policy, adapters merged, and the critic in a subfolder."""
    weights = full_state(trainer.actor_critic, trainable_only=True)
    forget_zero()
    trained = Trained(policy_part(weights), steps=trainer.state.global_step)
    save(trained, lambda: make_policy(config, folder, tokenizer), tokenizer, folder.ppo)
    if is_main_process():
        save_critic(trainer, weights, folder.ppo / "critic")
    barrier()
