"""The texts of a run, for a tokenizer that is trained on them (`model.architecture`): the training rows of all stages.

Rows are read as they are, before anything has a tokenizer to measure them; held-out rows stay out.
"""

from collections.abc import Iterator

from reward_models.chat import Text, to_messages
from rlhf.config.schema import Config
from rlhf.data import load_rows

__all__ = ["texts"]


def texts(config: Config) -> Iterator[str]:
    """Yield prompts and responses of the stages' data, in a fixed order."""
    if config.sft is not None:
        for demonstration in load_rows(config.sft.data, "demonstrations").train:
            yield from _contents(demonstration.prompt)
            yield demonstration.response
    if config.reward is not None:
        for pair in load_rows(config.reward.data, "preferences").train:
            yield from _contents(pair.prompt)
            yield from (turn["content"] for turn in [*pair.chosen_turns, *pair.rejected_turns])
            yield from (pair.chosen, pair.rejected)
    if config.ppo is not None and config.ppo.data is not None:
        for row in load_rows(config.ppo.data, "prompts").train:
            yield from _contents(row.prompt)


def _contents(prompt: Text) -> Iterator[str]:
    for message in to_messages(prompt):
        yield message["content"]
