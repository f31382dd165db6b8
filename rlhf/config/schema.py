"""The whole configuration file. Sections in the order of the stages; what crosses sections is checked here."""

from typing import Literal

from pydantic import Field, model_validator

from rlhf.config.base import Section
from rlhf.config.data import PromptDataConfig
from rlhf.config.model import ModelConfig
from rlhf.config.ppo import PROMPTS, EnvironmentConfig, PPOSectionConfig
from rlhf.config.training import RewardConfig, SFTConfig

__all__ = ["Config", "DistributedConfig", "EvaluateConfig", "RuntimeConfig", "TrackingConfig", "WandbConfig"]

_HELD_OUT = 0.2  # of an environment's rows, in a run that evaluates


class EvaluateConfig(Section):
    """The policy before and after PPO side by side on held-out prompts, with the same seeds."""

    data: PromptDataConfig | None = Field(
        None,
        description="Held-out prompts of rlhf/Prompts-v0; default: the test split of ppo.data. Other environments "
        "bring their own: held-out rows or seeds.",
    )
    max_prompts: int | None = Field(
        None,
        gt=0,
        description="Ask each environment at most this many prompts. Default: all; 64 where it draws them from a seed.",
    )
    samples_per_prompt: int = Field(1, gt=0, description="Responses for each prompt and policy.")
    max_response_tokens: int | None = Field(None, gt=0, description="Default: that of ppo.rollout.")
    temperature: float | None = Field(None, gt=0, description="Default: that of ppo.rollout.")
    by: str | None = Field(
        None, description="Column whose values are also reported one by one. Default: data source, or environment."
    )
    success_score: float | None = Field(
        1.0, description="With --policy: a response with at least this score counts in pass@k; null: no pass@k."
    )
    bootstrap_resamples: int = Field(10_000, ge=100, description="Resamples of prompts behind each interval.")
    table_rows: int = Field(20, ge=0, description="Pairs of responses shown in the report.")


class WandbConfig(Section):
    """Weights & Biases. Offline needs no account and no network. A key that is not null wins over W&B's variable."""

    mode: Literal["offline", "online", "disabled"] | None = Field(
        None, description="Where runs are written; default: WANDB_MODE, else offline."
    )
    project: str | None = Field(None, description="Project name; default: WANDB_PROJECT, else rlhf.")
    entity: str | None = Field(None, description="User or team; default: WANDB_ENTITY, else the account's own.")
    group: str | None = Field(
        None, description="What joins the stages, which are runs of their own; default: WANDB_RUN_GROUP, else the name."
    )
    name: str | None = Field(
        None, description="Name in W&B, to which the stage is added; default: WANDB_NAME, else name."
    )
    tags: list[str] = Field(default_factory=list, description="Tags of the runs; default: WANDB_TAGS.")
    artifacts: Literal["reference", "upload", "none"] | None = Field(
        None,
        description="Models and data: their place and hash alone, or whole; default: upload if WANDB_LOG_MODEL is end, "
        "else reference.",
    )


class TrackingConfig(Section):
    """What a run writes for people to look at; metrics.jsonl and rollouts are always written."""

    wandb: WandbConfig = Field(WandbConfig(), description="Weights & Biases.")
    tensorboard: bool = Field(True, description="Write TensorBoard event files.")
    report: bool = Field(True, description="Write report.html at the end.")
    rollout_rows_per_table: int = Field(64, gt=0, description="Rows in each W&B table of rollouts.")


class DistributedConfig(Section):
    """Processes and DeepSpeed ZeRO. The command line's --processes and --zero set these keys."""

    processes: int = Field(1, gt=0, description="Processes on this machine, one per device.")
    zero: Literal[0, 1, 2, 3] | None = Field(
        None, description="DeepSpeed ZeRO stage: 0 none, 1 optimizer, 2 + gradients, 3 + weights; null: no DeepSpeed."
    )
    offload: bool = Field(False, description="Keep ZeRO's optimizer state in host memory.")
    deepspeed: dict[str, object] = Field(default_factory=dict, description="Further keys of the DeepSpeed config.")

    @model_validator(mode="after")
    def _deepspeed_runs(self) -> "DistributedConfig":
        if self.zero is None and (self.offload or self.deepspeed):
            key = "offload" if self.offload else "deepspeed"
            raise ValueError(f"{key} has no effect without DeepSpeed: set zero to 0, 1, 2 or 3, or remove the key")
        return self


class RuntimeConfig(Section):
    """Where and how a process computes. Changes no result but for rounding."""

    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU where there is one.")
    compile_kernels: bool | None = Field(
        None,
        description="On a CPU, run common decoders in C++, which is compiled in seconds at the first start. "
        "Default: where there is a C++ compiler.",
    )


class Config(Section):
    """One run: a name, a seed, a model and the stages."""

    name: str = Field("run", pattern=r"^[\w.-]+$", description="Name of the run and of its folder.")
    runs_dir: str = Field("runs", description="Folder that holds run folders.")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="Governs everything that is random.")
    model: ModelConfig = Field(description="The policy.")
    sft: SFTConfig | None = Field(None, description="Supervised fine-tuning.")
    reward: RewardConfig | None = Field(None, description="The reward model.")
    ppo: PPOSectionConfig | None = Field(None, description="Policy optimisation.")
    evaluate: EvaluateConfig | None = Field(None, description="Before and after, on held-out prompts.")
    tracking: TrackingConfig = Field(TrackingConfig(), description="What a run writes.")
    distributed: DistributedConfig = Field(DistributedConfig(), description="Processes and ZeRO.")
    runtime: RuntimeConfig = Field(RuntimeConfig(), description="Device, and compiled code.")

    def held_out_fraction(self, environment: EnvironmentConfig) -> float:
        """Share of an environment's numbered rows that training leaves to evaluation."""
        if environment.asks_data:  # the data set says so itself
            return 0.0
        default = _HELD_OUT if self.evaluate is not None else 0.0
        return default if environment.test_fraction is None else environment.test_fraction

    @model_validator(mode="after")
    def _ppo_has_what_it_needs(self) -> "Config":
        if self.ppo is None:
            return self
        own = self.ppo.rewards.get("reward_model")
        if own is not None and own.function is None and own.path is None and self.reward is None:
            raise ValueError("ppo.rewards.reward_model: this run has no reward stage: add `reward`, or give a path")
        ids = ", ".join(each.id for each in self.ppo.mixture)
        if any(each.id == PROMPTS for each in self.ppo.mixture) and not self.ppo.rewards:
            raise ValueError(f"ppo.rewards is empty: {PROMPTS} gives no reward of its own; add a component")
        if any(each.asks_data for each in self.ppo.mixture) and self.ppo.data is None:
            raise ValueError(f"ppo.data is missing: {PROMPTS} needs prompts")
        if self.ppo.data is not None and not any(each.asks_data for each in self.ppo.mixture):
            raise ValueError(f"ppo.data is read only by {PROMPTS}, not by {ids}: remove it")
        if self.ppo.critic.init == "reward_model" and "reward_model" not in self.ppo.rewards:
            raise ValueError("ppo.critic.init is reward_model, but ppo.rewards has no reward_model")
        return self

    @model_validator(mode="after")
    def _trunk_can_be_shared(self) -> "Config":
        if self.ppo is None:
            return self
        if self.ppo.critic.type == "adapter" and self.model.lora is None:
            raise ValueError(
                "ppo.critic.type is adapter, but model.lora is null: an adapter critic runs on the frozen trunk of a "
                "LoRA policy. Set model.lora (for example {rank: 16, alpha: 32}), or ppo.critic.type to separate or "
                "shared"
            )
        own = self.ppo.rewards.get("reward_model")
        if own is None or not own.share_trunk:
            return self
        wrong = None
        if self.model.lora is None:
            wrong = "model.lora is null: both must be adapters on one frozen trunk. Set model.lora"
        elif self.reward is not None and self.reward.model is not None:
            wrong = "reward.model names another backbone. Remove it: the reward model then starts from the policy"
        elif self.distributed.zero == 3:
            wrong = (
                "distributed.zero is 3, which spreads the trunk over processes that score different numbers of "
                "responses. Set distributed.zero to 2 or less"
            )
        if wrong is not None:
            raise ValueError(
                f"ppo.rewards.reward_model.share_trunk is true, but {wrong}, or set "
                "ppo.rewards.reward_model.share_trunk to false"
            )
        return self

    @model_validator(mode="after")
    def _evaluate_has_prompts(self) -> "Config":
        if self.evaluate is None:
            return self
        if self.ppo is None:
            raise ValueError("evaluate compares the policy before and after ppo: add a section ppo, or remove evaluate")
        if self.evaluate.data is not None and not any(each.asks_data for each in self.ppo.mixture):
            raise ValueError(
                f"evaluate.data is read only by {PROMPTS}, not by {', '.join(each.id for each in self.ppo.mixture)}: "
                "remove it. What is played are rows that training leaves out (test_fraction), or seeds of their own"
            )
        if self.evaluate.data is None and self.ppo.data is not None and self.ppo.data.test_fraction == 0:
            raise ValueError("evaluate.data is missing and ppo.data.test_fraction is 0: set one of them")
        return self

    @model_validator(mode="after")
    def _batches_fit_processes(self) -> "Config":
        processes = self.distributed.processes
        if self.ppo is not None and self.ppo.episodes_per_iteration % processes:
            raise ValueError(
                f"ppo.episodes_per_iteration {self.ppo.episodes_per_iteration} must be a multiple of "
                f"distributed.processes {processes}"
            )
        for stage in ("sft", "reward"):
            section = getattr(self, stage)
            if section is None:
                continue
            rows = (section.microbatch_size or max(1, section.batch_size // processes)) * processes
            if section.batch_size % rows:
                raise ValueError(
                    f"{stage}.batch_size {section.batch_size} must be a multiple of microbatch_size x processes = "
                    f"{rows}"
                )
        return self
