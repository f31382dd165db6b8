"""Scripted customers: what they say, and the rules by which they judge a response. `dialogue` plays them.

A scenario is one JSON object:

    {"id": "parcel_stuck", "domain": "delivery",
     "opening": "My parcel ... Where is it?",
     "needs": [{"name": "search", "mentions": [["trace", "look into"]], "unless": ["cannot trace"],
                "insist": "Is anybody going to search for it?", "thanks": "Good.", "example": "I will trace it."},
               {"name": "identifier", "mentions": [["order number"]], "ask": "What do you need from me?", ...}],
     "avoid": ["calm down"], "offended": "I asked a simple question.",
     "closing": "All right, thanks."}

The opening raises the first need; each further need is raised by its `ask`. `example` is a sentence that meets it.

A response meets a need if it holds at least one phrase of every list in `mentions` and no phrase of `unless`. A phrase
is found as whole words, in any letter case; a trailing `*` allows any ending. Nothing here knows of turns or rewards.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from envs.errors import TextEnvError
from reward_models.suggest import did_you_mean

WORDS_READ = 80  # a customer reads no further: listing every phrase that might help does not pay


@dataclass(frozen=True)
class Need:
    """One thing the customer wants; see the module's text for the fields."""

    name: str
    mentions: tuple[tuple[str, ...], ...]
    insist: str
    thanks: str
    example: str
    ask: str = ""
    unless: tuple[str, ...] = ()

    def is_met_by(self, response: str) -> bool:
        """Return whether the part of `response` that is read names what is needed."""
        return all(mentions_any(response, phrases) for phrases in self.mentions) and not mentions_any(
            response, self.unless
        )


@dataclass(frozen=True)
class Scenario:
    """One scripted customer; see the module's text for the fields."""

    id: str
    domain: str
    opening: str
    needs: tuple[Need, ...]
    closing: str
    offended: str
    avoid: tuple[str, ...] = ()


def mentions_any(response: str, phrases: tuple[str, ...]) -> bool:
    """Return whether one of `phrases` stands within the first `WORDS_READ` words of `response`."""
    if not phrases:
        return False
    read = " ".join(response.replace("\u2019", "'").casefold().split()[:WORDS_READ])
    return _pattern(phrases).search(read) is not None


@lru_cache(maxsize=4096)
def _pattern(phrases: tuple[str, ...]) -> re.Pattern[str]:
    # Borders are looked around for and not \b, which would fail beside a phrase that begins or ends with a sign.
    parts = (
        re.escape(phrase.removesuffix("*").casefold()) + ("" if phrase.endswith("*") else r"(?!\w)")
        for phrase in phrases
    )
    return re.compile(rf"(?<!\w)(?:{'|'.join(parts)})")


def load_scenarios(path: str | Path) -> tuple[Scenario, ...]:
    """Read scenarios from a JSONL file, one object a line; empty lines are skipped.

    Raises:
        TextEnvError: The file cannot be read, holds none, or a line is malformed; the message names file and line.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TextEnvError(f"scenarios is {str(path)!r}, which cannot be read: {error}.") from error
    scenarios = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise TextEnvError(f"{where}: not JSON ({error}); write one object a line.") from error
        scenarios.append(parse_scenario(row, where))
    if not scenarios:
        raise TextEnvError(f"{path} holds no scenario; write one JSON object a line.")
    return tuple(scenarios)


def parse_scenario(row: object, where: str) -> Scenario:
    """Check one scenario and return it.

    Args:
        row: The object, see the module's text.
        where: What error messages call it, such as a file and a line.

    Raises:
        TextEnvError: A key is missing, unknown or of the wrong type.
    """
    fields = _fields(row, where, texts=("id", "domain", "opening", "closing", "offended"), others=("needs", "avoid"))
    rows = fields.get("needs")
    if not isinstance(rows, list | tuple) or not rows:
        raise TextEnvError(f"{where}: 'needs' is {rows!r}; it must be a list of at least one need.")
    needs = tuple(_parse_need(need, f"{where}, needs[{i}]", first=i == 0) for i, need in enumerate(rows))
    names = [need.name for need in needs]
    if len(set(names)) < len(names):
        raise TextEnvError(f"{where}: two needs have the same name, among {names}; rename one.")
    return Scenario(**{**fields, "needs": needs, "avoid": _phrases(fields.get("avoid", ()), f"{where}: 'avoid'")})


def _parse_need(row: object, where: str, *, first: bool) -> Need:
    texts = ("name", "insist", "thanks", "example") + (() if first else ("ask",))
    fields = _fields(row, where, texts=texts, others=("mentions", "unless"))
    groups = fields.get("mentions")
    if not isinstance(groups, list | tuple) or not groups:
        raise TextEnvError(f"{where}: 'mentions' is {groups!r}; it must be a list of at least one list of phrases.")
    mentions = tuple(_phrases(group, f"{where}: 'mentions'") for group in groups)
    if not all(mentions):
        raise TextEnvError(f"{where}: 'mentions' holds an empty list, which no response could satisfy; remove it.")
    return Need(**{**fields, "mentions": mentions, "unless": _phrases(fields.get("unless", ()), f"{where}: 'unless'")})


def _fields(row: object, where: str, *, texts: tuple[str, ...], others: tuple[str, ...]) -> dict[str, Any]:
    """Return `row` as a dict whose keys are allowed and whose `texts` are there and not empty."""
    if not isinstance(row, Mapping):
        raise TextEnvError(f"{where}: expected an object with the keys {[*texts, *others]}, got {row!r}.")
    for key in row:
        if key not in (*texts, *others):
            hint = did_you_mean(key, (*texts, *others)) or f"allowed are {[*texts, *others]}."
            raise TextEnvError(f"{where}: unknown key {key!r}; {hint}")
    for key in texts:
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise TextEnvError(f"{where}: {key!r} is {row.get(key)!r}; it must be a text that is not empty.")
    return dict(row)


def _phrases(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(v, str) and v.strip(" *") for v in value):
        raise TextEnvError(f"{where} holds {value!r}; it must be a list of phrases that are not empty.")
    return tuple(value)
