"""What every section of the configuration shares: unknown keys are refused and nothing changes after loading."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section of the YAML file."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), validate_default=True, allow_inf_nan=False
    )
