"""Which rows belong to train, validation, test or a half of the data: a hash of the prompt decides, and nothing else.

So a prompt falls on the same side in every file, in every order of rows and in every process, and rows of one prompt
are never torn apart. Between `validate.py` and `mix.py`.

Three questions are put to the hash (half, split, order); each has a digest of its own, so that the answers are
independent: the first half of the prompts has the same shares of train, validation and test as the whole.
"""

import json
from collections.abc import Iterable
from dataclasses import fields
from hashlib import blake2b
from typing import Literal, TypeAlias

from reward_models.chat import Text, to_messages
from rlhf.data.rows import Row, RowT

SplitName: TypeAlias = Literal["train", "validation", "test"]
Subset: TypeAlias = Literal["all", "first_half", "second_half"]


def prompt_key(prompt: Text) -> str:
    """The text that identifies a prompt: roles and contents in a form that does not depend on any tokenizer.

    Blanks around a message do not count, and a string is the same prompt as one message of the user, because chat
    templates make the same text of them.
    """
    return json.dumps([[message["role"], message["content"].strip()] for message in to_messages(prompt)])


def in_subset(prompt: Text, subset: Subset) -> bool:
    """Whether a prompt belongs to the half that is asked for; each prompt belongs to exactly one."""
    return subset == "all" or (_position(prompt, "half") < 0.5) == (subset == "first_half")


def split_of(prompt: Text, validation_fraction: float, test_fraction: float) -> SplitName:
    """The split of a prompt. With growing fractions a held-out prompt stays held out."""
    position = _position(prompt, "split")
    if position < test_fraction:
        return "test"
    # from the other end, so that neither fraction moves the other's prompts
    return "validation" if position >= 1 - validation_fraction else "train"


def in_hash_order(rows: Iterable[RowT]) -> list[RowT]:
    """Rows in the order of their prompt's hash; rows of one prompt in the order of their content."""
    return sorted(rows, key=lambda row: (_digest(row.prompt, "order"), _content(row)))


def _content(row: Row) -> str:
    values = [getattr(row, entry.name) for entry in fields(row) if entry.compare]  # all but its tokens
    return json.dumps(values, sort_keys=True, default=repr)


def _position(prompt: Text, question: str) -> float:
    """A number in [0, 1) that is uniform over prompts."""
    return int.from_bytes(_digest(prompt, question)[:6], "big") / 2**48  # 48 bits: exact in a float, never 1.0


def _digest(prompt: Text, question: str) -> bytes:
    return blake2b(prompt_key(prompt).encode(), digest_size=8, person=question.encode()).digest()
