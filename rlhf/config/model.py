"""The `model` section: where a model comes from and how it is fine-tuned."""

from typing import Literal

from pydantic import Field, model_validator

from rlhf.config.base import Section


class ArchitectureConfig(Section):
    """A model built from scratch, with random weights. Sizes are counts of units."""

    type: Literal["llama", "gpt2", "opt"] = Field("llama", description="Model family.")
    hidden_size: int = Field(64, gt=0, description="Width of the residual stream.")
    layers: int = Field(2, gt=0, description="Number of transformer blocks.")
    heads: int = Field(4, gt=0, description="Attention heads; must divide hidden_size.")
    key_value_heads: int | None = Field(None, gt=0, description="Key/value heads (llama only); default: heads.")
    intermediate_size: int | None = Field(None, gt=0, description="Width of the MLP; default: 4 * hidden_size.")
    max_positions: int = Field(512, gt=0, description="Longest sequence in tokens.")

    @model_validator(mode="after")
    def _heads_divide(self) -> "ArchitectureConfig":
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} must be a multiple of heads {self.heads}")
        if self.key_value_heads is not None and self.heads % self.key_value_heads:
            raise ValueError(f"heads {self.heads} must be a multiple of key_value_heads {self.key_value_heads}")
        if self.key_value_heads is not None and self.type != "llama":
            raise ValueError(f"key_value_heads is for type llama, not {self.type}: remove it")
        return self


class TokenizerConfig(Section):
    """A byte-level BPE tokenizer trained on the run's own data; only together with `architecture`."""

    vocab_size: int = Field(512, ge=260, description="Vocabulary size, special tokens included.")


class LoraConfig(Section):
    """Low-rank adapters through peft (Hu et al., 2021)."""

    rank: int = Field(8, gt=0, description="Rank r of the update.")
    alpha: float = Field(16.0, gt=0, description="Scale: the update is multiplied by alpha / rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input (SFT and reward only).")
    target_modules: list[str] | Literal["all-linear"] = Field("all-linear", description="Names of adapted layers.")
    top_layers: int | None = Field(None, gt=0, description="Adapt only the last N blocks; default: all.")


class ModelConfig(Section):
    """Exactly one of `path` and `architecture` says where the weights come from."""

    path: str | None = Field(
        None,
        description="Hub id, local folder, file ending in .gguf, or package:NAME (a GGUF inside a Python package).",
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the Hub.")
    trust_remote_code: bool = Field(False, description="Let a Hub model run its own Python code.")
    architecture: ArchitectureConfig | None = Field(None, description="Build from scratch instead of `path`.")
    tokenizer: TokenizerConfig | None = Field(None, description="Tokenizer to train, with `architecture`.")
    chat_template: str = Field(
        "auto", description="auto (the model's own, else a plain one), plain, none (raw text), or a .jinja file."
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "float32",
        description="Compute precision; masters stay float32. auto: bfloat16 where the processor multiplies it.",
    )
    num_layers: int | None = Field(None, gt=0, description="Keep only the first N blocks of the model.")
    lora: LoraConfig | None = Field(None, description="Train adapters instead of all weights.")

    @model_validator(mode="after")
    def _one_origin(self) -> "ModelConfig":
        if (self.path is None) == (self.architecture is None):
            raise ValueError("give exactly one of path (Hub id, folder, .gguf, package:NAME) and architecture")
        if self.tokenizer is not None and self.architecture is None:
            raise ValueError("tokenizer is trained only for a model from scratch: remove it, or give architecture")
        return self
