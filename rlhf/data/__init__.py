"""Rows: reading, checking, splitting and mixing demonstrations, preferences and prompts. `load_rows` is the front door.

Stages get checked rows and never open a file. No tensors, and no tokenizer but the callback that a stage hands in.
"""

from rlhf.data.dataset import content_hash, load_rows
from rlhf.data.rows import Demonstration, Encode, Kind, Preference, Prompt, Row, Splits, Tokens

__all__ = [
    "Demonstration",
    "Encode",
    "Kind",
    "Preference",
    "Prompt",
    "Row",
    "Splits",
    "Tokens",
    "content_hash",
    "load_rows",
]
