"""Options of the drop-in: transformers', those of TRL 1.12's PPOConfig, and what TRL's lack.

A dataclass that inherits TrainingArguments, so that HfArgumentParser and the arguments of TRL's scripts work. Names and
defaults are TRL's, but for `bf16`, `gradient_checkpointing` and `adam_epsilon`. Which options act says `options`; what
they mean to the loop says `translate`. The batch of one iteration is
`per_device_train_batch_size * gradient_accumulation_steps * processes` episodes.
"""

import os
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from rlhf.launch.processes import world_size
from rlhf.trl.options import check_options

_PRECISION = "ACCELERATE_MIXED_PRECISION"


def _option(default: Any, description: str) -> Any:
    return field(default=default, metadata={"help": description})


@dataclass
class PPOConfig(TrainingArguments):  # type: ignore[misc]
    """Options of `PPOTrainer`, under TRL's names.

    Raises:
        ValueError: An option is set that does not act here, and that would change the result if it did.
    """

    # Defaults that differ from transformers'.
    learning_rate: float = _option(3e-6, "Peak learning rate.")
    logging_steps: float = _option(10, "Iterations between two logs; below 1: a share of all iterations.")
    bf16: bool | None = _option(None, "bfloat16 compute, float32 masters; default: where a GPU supports it.")
    adam_epsilon: float = _option(1e-5, "Epsilon of Adam (Huang et al., 2024).")
    gradient_checkpointing: bool = _option(False, "Recompute activations to save memory.")
    push_to_hub: bool = _option(False, "Push the model to the Hub when it is saved.")

    # TRL's PPO.
    dataset_num_proc: int | None = _option(None, "For the script: processes that prepare the data set.")
    num_mini_batches: int = _option(1, "Optimizer steps in one pass over an iteration's episodes.")
    total_episodes: int | None = _option(None, "Episodes of the run; default: num_train_epochs passes over the data.")
    local_rollout_forward_batch_size: int = _option(64, "Rows decoded at once, per process.")
    num_sample_generations: int = _option(10, "How often responses to eval_dataset are printed during training.")
    response_length: int = _option(53, "Longest response in tokens, stop token included.")
    stop_token: str | None = _option(None, "'eos', which is also the default.")
    stop_token_id: int | None = _option(None, "Another token that ends a response, instead of EOS.")
    temperature: float = _option(0.7, "Divides the logits, in sampling and in every log-probability.")
    missing_eos_penalty: float | None = _option(None, "Subtracted from the score of a response without a stop token.")
    sft_model_path: str = _option("EleutherAI/pythia-160m", "For the script: where it loads the policy from.")
    world_size: int | None = _option(None, "Number of processes; follows from how they were started.")
    num_total_batches: int | None = _option(None, "Iterations; follows from total_episodes.")
    micro_batch_size: int | None = _option(None, "per_device_train_batch_size * processes; follows.")
    local_batch_size: int | None = _option(None, "Episodes of an iteration, per process; follows.")
    batch_size: int | None = _option(None, "Episodes of an iteration; follows.")
    local_mini_batch_size: int | None = _option(None, "Episodes of a minibatch, per process; follows.")
    mini_batch_size: int | None = _option(None, "Episodes of a minibatch; follows.")
    reward_model_path: str = _option("EleutherAI/pythia-160m", "For the script: where it loads the reward model from.")
    model_adapter_name: str | None = _option(None, "Not supported: the policy's active adapter is trained.")
    ref_adapter_name: str | None = _option(None, "Not supported: the reference is the policy without its adapters.")
    num_ppo_epochs: int = _option(4, "Passes over each iteration's episodes.")
    whiten_rewards: bool = _option(False, "Token rewards to variance 1; their mean stays.")
    kl_coef: float = _option(0.05, "Weight of the KL penalty (its first value, if adaptive).")
    kl_estimator: str = _option("k1", "k1; k3 in the reward has a wrong fixed point and is refused.")
    cliprange: float = _option(0.2, "The ratio is clipped to 1 +- this.")
    vf_coef: float = _option(0.1, "Weight of the value loss.")
    cliprange_value: float = _option(0.2, "New values stay this near to the old ones.")
    gamma: float = _option(1.0, "Discount per token.")
    lam: float = _option(0.95, "Lambda of GAE.")
    ds3_gather_for_generation: bool = _option(True, "ZeRO-3: weights are gathered for sampling; always on.")

    # What TRL's lack.
    advantage: str = _option("gae", "Advantage estimator: gae, rloo, group or reinforce.")
    samples_per_prompt: int = _option(1, "Responses for each prompt of an iteration.")
    microbatch_tokens: int | None = _option(
        None, "Tokens of one forward and backward pass, padding included; default: per_device_train_batch_size rows."
    )
    compile_kernels: bool | None = _option(
        None, "On a CPU, run common decoders in C++; default: where there is a compiler."
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
    stop_strings: list[str] | None = field(default=None, metadata={"help": "Text that ends a response."})
    top_k: int | None = _option(None, "Sample from the k likeliest tokens; biases the ratio.")
    top_p: float = _option(1.0, "Sample from the likeliest mass p; biases the ratio.")
    reward_weights: list[float] | None = field(default=None, metadata={"help": "Of several rewards; default: all 1."})

    def __post_init__(self) -> None:
        check_options(self)  # before transformers fills in what was not set
        if self.bf16 is None:  # TRL's default is True everywhere; on a CPU float32 is the safe one
            self.bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        if self.world_size not in (None, world_size()):
            raise ValueError(
                f"world_size is {self.world_size}, but {world_size()} processes were started: leave it out"
            )
        self.world_size: int = world_size()  # the field hides transformers' property, which its DeepSpeed setup reads
        # transformers renamed gradient_checkpointing and warns about the old name; both mean the same here.
        if getattr(self, "activation_checkpointing", False) is None:
            self.activation_checkpointing = self.gradient_checkpointing
        if getattr(self, "activation_checkpointing_kwargs", False) is None:
            self.activation_checkpointing_kwargs = self.gradient_checkpointing_kwargs
        precision = os.environ.get(_PRECISION)
        super().__post_init__()
        os.environ.pop(_PRECISION, None)  # transformers 4 sets it, for all options that are made later
        if precision is not None:
            os.environ[_PRECISION] = precision
