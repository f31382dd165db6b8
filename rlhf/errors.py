"""Errors that the pipeline raises for a user's mistakes; all are `UserError` (exit code 2, no traceback)."""

from reward_models.errors import UserError


class ConfigError(UserError):
    """A key or value of the configuration is wrong."""


class DataError(UserError):
    """A data file or one of its rows is wrong."""


class ModelError(UserError):
    """A model or tokenizer cannot be found, built or used."""


class StageError(UserError):
    """A stage cannot run: something that it needs is missing."""
