"""Errors that a user can mend. The command line prints them without a traceback and exits with code 2."""


class UserError(Exception):
    """A mistake in the user's input: names the key or row, the value, what is allowed and the way out."""


class RewardError(UserError):
    """A reward function or reward model broke its contract."""


class ChatFormatError(UserError):
    """A tokenizer or chat template cannot be used to format prompts and responses."""
