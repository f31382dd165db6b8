"""Reading, checking, mixing and splitting demonstrations, preferences and prompts; `load_rows` is the front door."""

from rlhf.data.dataset import content_hash, load_rows
from rlhf.data.rows import Demonstration, Kind, Preference, Prompt, Row, Splits

__all__ = ["Demonstration", "Kind", "Preference", "Prompt", "Row", "Splits", "content_hash", "load_rows"]
