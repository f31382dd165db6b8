"""The `ppo` section. Defaults follow Ziegler et al. (2019) and Huang et al. (2024) where they agree."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from rlhf.config.base import Section
from rlhf.config.data import PromptDataConfig

PROMPTS = "rlhf/Prompts-v0"  # the environment that asks the prompts of a data set


class EnvironmentConfig(Section):
    """The Gymnasium environment that episodes come from."""

    id: str = Field(PROMPTS, description="Any registered Gymnasium id with text spaces.")
    kwargs: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of gymnasium.make.")
    max_turns: int = Field(
        8,
        gt=0,
        description="Most policy turns in one episode; then it is truncated. A smaller limit of its own counts.",
    )
    test_fraction: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share of the environment's numbered rows that is evaluated and not trained on. Default: 0.2 in a "
        "run that evaluates, else 0.",
    )
    on_error: Literal["raise", "drop", "retry"] = Field(
        "drop",
        description="An environment that raises, hangs or answers wrongly ends the run, loses its episode, or plays it "
        "once more in a new environment. A run in which most episodes fail ends in any case.",
    )
    workers: int = Field(1, gt=0, description="Environments that are stepped at the same time, in threads.")
    timeout_seconds: float | None = Field(None, gt=0, description="A reset or step that takes longer has failed.")

    @property
    def label(self) -> str:
        """What metrics and results call it."""
        return self.id

    @property
    def asks_data(self) -> bool:
        """Whether it asks the prompts of a data set."""
        return self.id == PROMPTS and "prompts" not in self.kwargs


class MixedEnvironmentConfig(EnvironmentConfig):
    """One of several environments of a run."""

    name: str | None = Field(None, min_length=1, description="What metrics call it; default: the id.")
    weight: float = Field(1.0, gt=0, description="Its share of the prompts, relative to the other environments.")

    @property
    def label(self) -> str:
        """What metrics and results call it."""
        return self.name or self.id


class RewardComponentConfig(Section):
    """One component of the score: a function, or a reward model."""

    function: str | None = Field(None, description="module:function, path/to/file.py:function, or a built-in name.")
    path: str | None = Field(None, description="Folder or Hub id of a reward model, instead of a function.")
    args: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the function.")
    share_trunk: bool = Field(
        False, description="Keep this run's own reward model, trained by LoRA, as an adapter on the policy's trunk."
    )
    weight: float = Field(1.0, description="Factor of this component in the score.")
    on_error: Literal["raise", "skip"] = Field("raise", description="Stop at a failing call, or leave its samples out.")
    timeout_seconds: float | None = Field(None, gt=0, description="A call that takes longer has failed.")

    @model_validator(mode="after")
    def _not_both(self) -> "RewardComponentConfig":
        if self.function is not None and self.path is not None:
            raise ValueError("give function or path, not both")
        if self.args and self.function is None:
            raise ValueError("args belong to a function: name it, or remove args")
        return self

    @model_validator(mode="after")
    def _trunk_can_be_shared(self) -> "RewardComponentConfig":
        other = "function" if self.function is not None else "path" if self.path is not None else None
        if self.share_trunk and other is not None:
            raise ValueError(
                f"share_trunk true is for the run's own reward model, which has no {other}: remove {other}, or set "
                "share_trunk to false"
            )
        if self.share_trunk and self.timeout_seconds is not None:
            raise ValueError(
                f"timeout_seconds {self.timeout_seconds:g} does not go with share_trunk: a call that is given up would "
                "go on using the policy's trunk. Set it to null, or share_trunk to false"
            )
        return self


class KLConfig(Section):
    """The penalty that keeps the policy near the SFT policy: k1 per token, in the reward."""

    coefficient: float = Field(0.05, ge=0, description="Weight of the KL penalty (its first value, if adaptive).")
    controller: Literal["fixed", "adaptive"] = Field("fixed", description="Adaptive: Ziegler et al. (2019), 2.2.")
    target: float = Field(6.0, gt=0, description="Adaptive: KL to hold, in nats per episode.")
    horizon: int = Field(10_000, gt=0, description="Adaptive: episodes over which the coefficient reacts.")


class CriticConfig(Section):
    """The value function."""

    type: Literal["separate", "shared", "adapter"] = Field(
        "separate", description="Own trunk, a head on the policy, or a second adapter and a head on its LoRA trunk."
    )
    init: Literal["policy", "reward_model"] = Field("policy", description="Weights that a separate critic starts from.")
    path: str | None = Field(None, description="The critic folder of an earlier run, of the same type, to start from.")
    learning_rate: float | None = Field(None, gt=0, description="Default: the policy's.")

    @model_validator(mode="after")
    def _one_start(self) -> "CriticConfig":
        if self.init == "reward_model" and self.type != "separate":
            raise ValueError(
                f"init reward_model is for a critic with a trunk of its own, not for type {self.type}: set type to "
                "separate, or init to policy"
            )
        if self.init == "reward_model" and self.path is not None:
            raise ValueError(
                f"init reward_model and path {self.path} are two starts: set init to policy, or remove path"
            )
        return self


class RolloutConfig(Section):
    """How responses are sampled."""

    max_prompt_tokens: int = Field(512, gt=0, description="Longer prompts are an error.")
    max_response_tokens: int = Field(64, gt=0, description="Longest response, end-of-text token included.")
    min_response_tokens: int = Field(0, ge=0, description="The end-of-text token is not sampled before this length.")
    temperature: float = Field(1.0, gt=0, description="Divides the logits, here and in every log-probability.")
    top_k: int | None = Field(None, gt=0, description="Sample from the k likeliest tokens; biases the ratio.")
    top_p: float = Field(1.0, gt=0, le=1, description="Sample from the likeliest mass p; biases the ratio.")
    stop_strings: list[str] = Field(default_factory=list, description="Text that ends a response.")
    batch_size: int = Field(64, gt=0, description="Rows decoded at once, per process.")

    @model_validator(mode="after")
    def _lengths(self) -> "RolloutConfig":
        if self.min_response_tokens > self.max_response_tokens:
            raise ValueError(
                f"min_response_tokens {self.min_response_tokens} exceeds max_response_tokens {self.max_response_tokens}"
            )
        return self


class MissingStopConfig(Section):
    """What a response earns that reached its limit without a stop token."""

    action: Literal["none", "replace", "subtract"] = Field("none", description="Of the score: leave, replace, lower.")
    value: float = Field(0.0, description="The score that replaces it, or the penalty that is subtracted.")

    @model_validator(mode="after")
    def _acts(self) -> "MissingStopConfig":
        if self.action == "none" and self.value != 0:
            raise ValueError(f"value {self.value} has no effect with action none: choose replace or subtract")
        if self.action == "subtract" and self.value <= 0:
            raise ValueError(f"value {self.value} must be positive: it is subtracted")
        return self


class PPOSectionConfig(Section):
    """Policy optimisation (Schulman et al., 2017) from a text environment."""

    environment: EnvironmentConfig = Field(EnvironmentConfig(), description="Where episodes come from.")
    environments: list[MixedEnvironmentConfig] = Field(
        default_factory=list, description="Several environments in one run, by weight, instead of `environment`."
    )
    data: PromptDataConfig | None = Field(None, description="Prompts of rlhf/Prompts-v0.")
    rewards: dict[str, RewardComponentConfig] = Field(
        default_factory=dict, description="Components of the score; `reward_model` is this run's own."
    )
    rollout: RolloutConfig = Field(RolloutConfig(), description="Sampling.")
    missing_stop: MissingStopConfig = Field(
        default_factory=MissingStopConfig, description="Responses that did not end."
    )
    kl: KLConfig = Field(KLConfig(), description="The KL penalty.")
    critic: CriticConfig = Field(CriticConfig(), description="The value function.")
    advantage: Literal["gae", "rloo", "group", "reinforce"] = Field("gae", description="Advantage estimator.")
    samples_per_prompt: int = Field(1, gt=0, description="Responses for each prompt of an iteration.")
    iterations: int = Field(10, gt=0, description="Rollouts, each followed by an update.")
    episodes_per_iteration: int = Field(64, gt=0, description="Episodes in one rollout, over all processes.")
    epochs: int = Field(4, gt=0, description="Passes over each rollout.")
    minibatches: int = Field(4, gt=0, description="Optimizer steps in one pass.")
    microbatch_tokens: int = Field(4096, gt=0, description="Tokens in one forward and backward pass, per process.")
    learning_rate: float = Field(1e-5, gt=0, description="Peak learning rate of AdamW.")
    scheduler: Literal["linear", "constant"] = Field("linear", description="Linear falls to exactly 0.")
    warmup_iterations: int = Field(0, ge=0, description="Iterations in which the rate rises from 0.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    max_gradient_norm: float | None = Field(1.0, gt=0, description="Gradients are scaled down to this norm.")
    clip_range: float = Field(0.2, gt=0, description="The ratio is clipped to 1 +- this.")
    value_clip_range: float = Field(0.2, gt=0, description="New values stay this near to the old ones.")
    value_coefficient: float = Field(0.1, ge=0, description="Weight of the value loss.")
    entropy_coefficient: float = Field(0.0, ge=0, description="Weight of the entropy bonus.")
    gamma: float = Field(1.0, ge=0, le=1, description="Discount per token.")
    gae_lambda: float = Field(0.95, ge=0, le=1, description="Lambda of GAE.")
    whiten_advantages: bool = Field(True, description="Advantages to mean 0, variance 1 over the rollout.")
    whiten_rewards: bool = Field(False, description="Token rewards to variance 1; their mean stays.")
    bootstrap_truncated: bool = Field(False, description="A truncated episode ends with V of its last state.")

    @property
    def mixture(self) -> Sequence[EnvironmentConfig]:
        """The environments of the run, one or several."""
        return self.environments or [self.environment]

    @model_validator(mode="after")
    def _one_way_to_name_environments(self) -> "PPOSectionConfig":
        if self.environments and self.environment != EnvironmentConfig():
            raise ValueError("give environment or environments, not both")
        labels = [each.label for each in self.environments]
        twice = [label for label in labels if labels.count(label) > 1]
        if twice:
            raise ValueError(f"environments has {twice[0]} {labels.count(twice[0])} times: give each a name of its own")
        return self

    @model_validator(mode="after")
    def _batches_divide(self) -> "PPOSectionConfig":
        if self.episodes_per_iteration % self.minibatches:
            raise ValueError(
                f"episodes_per_iteration {self.episodes_per_iteration} must be a multiple of minibatches "
                f"{self.minibatches}"
            )
        if self.episodes_per_iteration % self.samples_per_prompt:
            raise ValueError(
                f"episodes_per_iteration {self.episodes_per_iteration} must be a multiple of samples_per_prompt "
                f"{self.samples_per_prompt}"
            )
        if self.advantage in ("rloo", "group") and self.samples_per_prompt < 2:
            raise ValueError(
                f"advantage {self.advantage} compares samples of one prompt: samples_per_prompt must be 2 or more"
            )
        if self.warmup_iterations >= self.iterations:
            raise ValueError(f"warmup_iterations {self.warmup_iterations} must be below iterations {self.iterations}")
        return self

    @model_validator(mode="after")
    def _components_exist(self) -> "PPOSectionConfig":
        for name, component in self.rewards.items():
            if name != "reward_model" and component.function is None and component.path is None:
                raise ValueError(
                    f"rewards.{name} is no component: give it function or path "
                    "(only reward_model, this run's own, needs neither)"
                )
        return self
