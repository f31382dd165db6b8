"""Where rows come from, how they are checked, mixed and split."""

from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import Field, model_validator

from rlhf.config.base import Section

Format: TypeAlias = Literal["trl", "sharegpt", "alpaca", "kto", "hh_rlhf"]


class SourceConfig(Section):
    """One file, several, a Hub data set or a function."""

    path: str = Field(
        description="File (.jsonl, .json, .csv, .parquet), glob, folder, packaged:NAME, module:function or Hub id."
    )
    format: Format = Field("trl", description="Shape of the rows; docs/data.md shows each.")
    weight: float = Field(1.0, gt=0, description="Share of this source in a mix, relative to the others.")
    split: str = Field("train", description="Split of a folder or of a Hub data set.")
    columns: dict[str, str] = Field(default_factory=dict, description="Our column -> the source's column.")
    text_columns: list[str] = Field(
        default_factory=list, description="CSV columns that stay text though all their cells are numbers or JSON."
    )
    args: dict[str, Any] = Field(
        default_factory=dict, description="Keyword arguments of the function, or of load_dataset."
    )


class DataConfig(Section):
    """A data set: one source or a weighted mix, split by a hash of the prompt."""

    sources: list[SourceConfig] = Field(min_length=1, description="One source or several to mix.")
    on_bad_row: Literal["error", "skip"] = Field("error", description="Stop at a bad row, or skip it and count it.")
    validation_fraction: float = Field(0.1, ge=0, lt=1, description="Share of prompts held out for validation.")
    test_fraction: float = Field(0.0, ge=0, lt=1, description="Share of prompts held out for testing.")
    fold_system: bool = Field(
        False, description="Put a system message at the head of the first user message, for templates without the role."
    )
    max_rows: int | None = Field(None, gt=0, description="Use at most this many rows, in order of the prompt's hash.")
    subset: Literal["all", "first_half", "second_half"] = Field(
        "all", description="Use only one half of the prompts, by hash: two disjoint halves for a trained judge."
    )

    @model_validator(mode="before")
    @classmethod
    def _single_source(cls, value: Any) -> Any:
        """Accept `data: file.jsonl` and `data: {path: file.jsonl, ...}` for the common case of one source."""
        if isinstance(value, str | Path):
            return {"sources": [{"path": str(value)}]}
        if isinstance(value, dict) and "path" in value and "sources" not in value:
            source = {key: value[key] for key in SourceConfig.model_fields if key in value}
            rest = {key: entry for key, entry in value.items() if key not in source}
            return {**rest, "sources": [source]}
        return value

    @model_validator(mode="after")
    def _something_left_to_train_on(self) -> "DataConfig":
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError(
                f"validation_fraction {self.validation_fraction} + test_fraction {self.test_fraction} must be below 1"
            )
        return self


class PromptDataConfig(DataConfig):
    """Prompts: nothing is held out for validation unless asked, because no stage would read it."""

    validation_fraction: float = Field(0.0, ge=0, lt=1, description="Share of prompts that are left out.")
