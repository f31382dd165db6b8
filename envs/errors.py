"""Errors of text environments."""

from reward_models.errors import UserError


class TextEnvError(UserError):
    """A text environment was configured or used wrongly."""
