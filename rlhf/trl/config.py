"""Options of the PPO trainer: TRL's, and what TRL's lack. A dataclass, as transformers' trainers expect it.

Inherited options mean what they mean in TRL; where TRL ignores one (`num_mini_batches`, `max_grad_norm`, `bf16`,
`gradient_checkpointing`), it acts here. The batch of one iteration is
`per_device_train_batch_size * gradient_accumulation_steps * processes` episodes.
"""

from dataclasses import dataclass, field
from typing import Any

import torch

from rlhf.launch.deepspeed import world_size
from rlhf.ppo.advantages import ESTIMATORS
from rlhf.ppo.kl import AdaptiveKLController, FixedKLController, KLController
from rlhf.trl.bridge import TrlPPOConfig


def _option(default: Any, description: str) -> Any:
    return field(default=default, metadata={"help": description})


@dataclass
class PPOConfig(TrlPPOConfig):  # type: ignore[misc]
    """TRL's `PPOConfig` with the options that a correct PPO needs."""

    bf16: bool | None = _option(None, "bfloat16 compute, float32 masters; default: where a GPU supports it.")
    adam_epsilon: float = _option(1e-5, "Epsilon of Adam (Huang et al., 2024).")
    gradient_checkpointing: bool = _option(False, "Recompute activations to save memory.")
    advantage: str = _option("gae", "Advantage estimator: gae, rloo, group or reinforce.")
    samples_per_prompt: int = _option(1, "Responses for each prompt of an iteration.")
    microbatch_tokens: int | None = _option(
        None, "Tokens of one forward and backward pass, padding included; default: per_device_train_batch_size rows."
    )
    compile_kernels: bool | None = _option(
        None, "On a CPU, run attention, norms, gates, softmax and decoding in C++; default: where there is a compiler."
    )
    kl_controller: str = _option("fixed", "fixed or adaptive.")
    kl_target: float = _option(6.0, "Adaptive: KL to hold, in nats per episode.")
    kl_horizon: int = _option(10_000, "Adaptive: episodes over which the coefficient reacts.")
    critic: str = _option("separate", "separate (value_model), shared (a head on the policy) or adapter (LoRA).")
    critic_learning_rate: float | None = _option(None, "Default: learning_rate.")
    missing_stop_action: str = _option("none", "Score of a response without a stop: none, replace or subtract.")
    missing_stop_value: float = _option(0.0, "The score that replaces it, or the penalty.")
    entropy_coefficient: float = _option(0.0, "Weight of the entropy bonus.")
    whiten_advantages: bool = _option(True, "Advantages to mean 0, variance 1 over the rollout.")
    bootstrap_truncated: bool = _option(False, "A truncated episode ends with V of its last state.")
    min_response_length: int = _option(0, "The stop token is not sampled before this length, in tokens.")
    max_prompt_length: int | None = _option(None, "Longer prompts are an error, in tokens.")
    stop_strings: tuple[str, ...] = _option((), "Text that ends a response.")
    top_k: int | None = _option(None, "Sample from the k likeliest tokens; biases the ratio.")
    top_p: float = _option(1.0, "Sample from the likeliest mass p; biases the ratio.")
    reward_weights: tuple[float, ...] | None = _option(None, "Weights of several reward functions; default: all 1.")

    def __post_init__(self) -> None:
        if self.bf16 is None:  # TRL's default is True everywhere; on a CPU float32 is the safe one
            self.bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        if self.missing_eos_penalty is not None:
            self.missing_stop_action, self.missing_stop_value = "subtract", self.missing_eos_penalty
        self.world_size: int = world_size()  # TRL's field hides transformers' property, which the DeepSpeed setup reads
        # transformers renamed gradient_checkpointing and warns about the old name; both mean the same here.
        if getattr(self, "activation_checkpointing", None) is None:
            self.activation_checkpointing = self.gradient_checkpointing
        super().__post_init__()
        self._check()

    def _check(self) -> None:
        allowed = {
            "advantage": tuple(ESTIMATORS),
            "kl_controller": ("fixed", "adaptive"),
            "critic": ("separate", "shared", "adapter"),
            "missing_stop_action": ("none", "replace", "subtract"),
        }
        for name, choices in allowed.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed are {', '.join(choices)}")
        if self.kl_estimator != "k1":
            raise ValueError(
                f"kl_estimator is {self.kl_estimator!r}; only k1 is allowed: k3 in the reward has a wrong fixed point, "
                "because its gradient is not that of KL(policy || reference)"
            )
        if self.stop_token and self.stop_token_id is not None:
            raise ValueError("give stop_token or stop_token_id, not both")

    def make_kl_controller(self) -> KLController:
        """Return the controller of the KL coefficient, at its first value."""
        if self.kl_controller == "adaptive":
            return AdaptiveKLController(self.kl_coef, self.kl_target, self.kl_horizon)
        return FixedKLController(self.kl_coef)
