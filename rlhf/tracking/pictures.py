"""What W&B and TensorBoard show of one iteration's episodes besides a table: histograms, and a page of tokens.

The page holds some responses and is one piece of HTML without script or network: tokens are shaded by reward, KL,
value or advantage, whichever is chosen, and a token's numbers appear when the pointer rests on it. Everything that a
model or a user wrote is escaped.
"""

import random
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhf.tracking.text import as_text, signed

__all__ = ["histograms", "token_page"]

_RANDOM_RESPONSES = 3
_QUANTITIES = {"reward": "reward", "KL": "kl", "value": "value", "advantage": "advantage"}  # as shown -> as kept

_STYLE = """
body{font:14px/1.6 system-ui,sans-serif;margin:12px;color:#1c1c1c;background:#fff}
h2{font-size:15px;margin:18px 0 2px}p{margin:2px 0;color:#555;white-space:pre-wrap}
.t{white-space:pre-wrap;border-left:3px solid #ccc;padding-left:8px}.t span{border-radius:3px}
"""


def token_page(rows: Sequence[Mapping[str, Any]], iteration: int) -> str | None:
    """The best, the worst and some random responses as HTML, each token shaded by a number that is chosen there.

    Args:
        rows: Of one iteration, as `rollouts.typed_rows` makes them.
        iteration: Chooses the random ones: the same every time.

    Returns:
        None if no row has numbers for its tokens.
    """
    scored = [row for row in rows if np.isfinite(_numbers(row, "reward")).any() and row.get("score") is not None]
    if not scored:
        return None
    ordered = sorted(scored, key=lambda row: row["score"])
    others = random.Random(iteration).sample(ordered[1:-1], min(_RANDOM_RESPONSES, max(0, len(ordered) - 2)))
    chosen = {"best": ordered[-1]} | ({"worst": ordered[0]} if len(ordered) > 1 else {})
    chosen |= {f"random {number}": row for number, row in enumerate(others, start=1)}
    choices = "".join(
        f'<input type="radio" name="q" id="q{n}"{" checked" if n == 0 else ""}><label for="q{n}">{name}</label> '
        for n, name in enumerate(_QUANTITIES)
    )
    shades = "".join(f"#q{n}:checked~section .t span{{background:var(--c{n})}}" for n in range(len(_QUANTITIES)))
    sections = "".join(_section(title, row) for title, row in chosen.items())
    return (
        f'<!doctype html><meta charset="utf-8"><title>Iteration {iteration}</title><style>{_STYLE}{shades}</style>'
        f"<b>Iteration {iteration}</b>, shaded by: {choices}{sections}"
    )


def histograms(rows: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[np.float64]]:
    """Finite values by name: reward, KL, length of each episode; advantage, ratio to the reference of each token."""
    parts: dict[str, list[Any]] = {"reward": [], "kl": [], "length": [], "advantage": [], "ratio_to_reference": []}
    for row in rows:
        for name in ("reward", "kl", "length"):
            parts[name].append(row.get(name))
        parts["advantage"] += _numbers(row, "advantage").tolist()
        parts["ratio_to_reference"] += np.exp(_numbers(row, "kl").clip(-20, 20)).tolist()
    arrays = {name: np.array(values, dtype=np.float64) for name, values in parts.items()}
    finite = {name: values[np.isfinite(values)] for name, values in arrays.items()}
    return {name: values for name, values in finite.items() if values.size}


def _section(title: str, row: Mapping[str, Any]) -> str:
    """One response: what was asked, what it earned, its tokens."""
    score, components = row["score"], [(k, v) for k, v in row.items() if k.startswith("component/") and v is not None]
    earned = ", ".join(
        [f"score {signed(score)}", *(f"{k.removeprefix('component/')} {signed(v)}" for k, v in components)]
    )
    numbers = {name: _numbers(row, field) for name, field in _QUANTITIES.items()}
    limits = {name: float(np.nanmax(np.abs(values), initial=0)) or 1.0 for name, values in numbers.items()}
    spans = []
    for position, token in enumerate(row["tokens"]):
        here = {name: float(values[position]) for name, values in numbers.items()}
        colours = "".join(f"--c{n}:{_colour(here[name] / limits[name])};" for n, name in enumerate(numbers))
        tip = ", ".join(f"{name} {signed(value)}" for name, value in here.items())
        text = token.get("text") or f"[{token.get('id')}]"  # a part of a character has no text of its own
        spans.append(f'<span style="{colours}" title="{escape(tip)}">{escape(text)}</span>')
    stop = escape(str(row.get("stop_reason") or ""))
    return (
        f"<section><h2>{title}: {escape(earned)}</h2><p>{escape(as_text(row.get('prompt')))}</p>"
        f'<div class="t">{"".join(spans)}</div><p>{len(spans)} tokens, {stop}</p></section>'
    )


def _colour(share: float) -> str:
    """Green for what is above 0, red for what is below; `share` of the largest in this response."""
    if not np.isfinite(share) or share == 0:
        return "transparent"
    hue = "30,140,60" if share > 0 else "205,50,40"
    return f"rgba({hue},{min(1.0, abs(share)) * 0.6:.2f})"


def _numbers(row: Mapping[str, Any], field: str) -> NDArray[np.float64]:
    """A field of all tokens; NaN where a token lacks it, empty where the row has no tokens."""
    values = [token.get(field) for token in row.get("tokens") or ()]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
