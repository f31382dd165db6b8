"""Errors of text environments."""

from reward_models.errors import UserError


class TextEnvError(UserError):
    """A text environment was configured or used wrongly."""


class EpisodeError(TextEnvError):
    """An environment failed within an episode: it raised, took too long, or returned what Gymnasium does not allow."""
