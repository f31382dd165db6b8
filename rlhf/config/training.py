"""The supervised stages: `sft` and `reward`."""

from typing import Literal

from pydantic import Field, model_validator

from rlhf.config.base import Section
from rlhf.config.data import DataConfig
from rlhf.config.model import ModelConfig


class SupervisedConfig(Section):
    """Optimisation keys that the SFT and the reward-model stage share."""

    data: DataConfig = Field(description="The stage's data.")
    epochs: float = Field(1.0, gt=0, description="Passes over the training rows.")
    max_steps: int | None = Field(None, gt=0, description="Stop after this many optimizer steps.")
    batch_size: int = Field(8, gt=0, description="Rows per optimizer step, over all processes.")
    microbatch_size: int | None = Field(None, gt=0, description="Rows per forward pass and process; default: batch.")
    learning_rate: float = Field(1e-4, gt=0, description="Peak learning rate of AdamW.")
    scheduler: Literal["linear", "cosine", "constant_with_warmup"] = Field("linear", description="Decay of the rate.")
    warmup_fraction: float = Field(0.0, ge=0, lt=1, description="Share of the steps in which the rate rises from 0.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    max_gradient_norm: float = Field(1.0, gt=0, description="Gradients are scaled down to this norm.")
    max_tokens: int = Field(512, gt=0, description="Longest row (prompt + response) in tokens; longer is a bad row.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations to save memory.")
    evaluate_every_steps: int | None = Field(None, gt=0, description="Validate this often; default: once an epoch.")
    early_stopping_patience: int | None = Field(
        None, gt=0, description="Stop after this many validations without improvement."
    )

    @model_validator(mode="after")
    def _batch_divides(self) -> "SupervisedConfig":
        if self.microbatch_size is not None and self.batch_size % self.microbatch_size:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of microbatch_size {self.microbatch_size}"
            )
        return self

    @model_validator(mode="after")
    def _validates_if_it_waits(self) -> "SupervisedConfig":
        waits = self.early_stopping_patience is not None or self.evaluate_every_steps is not None
        if waits and self.data.validation_fraction == 0:
            key = "early_stopping_patience" if self.early_stopping_patience is not None else "evaluate_every_steps"
            raise ValueError(f"{key} needs validation rows: raise data.validation_fraction above 0, or remove the key")
        return self


class SFTConfig(SupervisedConfig):
    """Supervised fine-tuning: the loss is on the response only, its end-of-text token included."""


class RewardConfig(SupervisedConfig):
    """A Bradley-Terry reward model on pairs (Christiano et al., 2017; Ouyang et al., 2022, eq. 1)."""

    model: ModelConfig | None = Field(None, description="Another backbone and tokenizer; default: the SFT policy.")
    center_coefficient: float | None = Field(None, gt=0, description="Pulls rewards to mean 0 (2312.09244, eq. 2).")
    normalisation_samples: int = Field(128, ge=2, description="Responses of the SFT policy that set mean 0, std 1.")
    normalisation_max_response_tokens: int = Field(64, gt=0, description="Length of those responses in tokens.")
