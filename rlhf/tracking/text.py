"""Numbers and conversations as text for people; used by the report and the picture."""

import math
from collections.abc import Iterable
from typing import Any, TypeGuard

__all__ = ["as_text", "decimals_for", "number", "signed"]

_DASH, _MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"


def decimals_for(values: Iterable[float | None]) -> int:
    """Decimal places that show the largest of values that belong together with three digits."""
    largest = max((abs(value) for value in values if _finite(value)), default=0.0)
    return next((places for limit, places in ((1, 3), (10, 2), (100, 1)) if largest < limit), 0)


def number(value: float | None, decimals: int | None = None) -> str:
    """Three significant digits, or so many decimal places; a dash for what could not be computed."""
    if not _finite(value):
        return _DASH
    if decimals is not None:
        text = f"{value:,.{decimals}f}"
    elif abs(value) >= 999.5:
        text = f"{value:,.0f}"
    elif value != 0 and abs(value) < 0.001:
        text = f"{value:.1e}".replace("e-0", "e-")
    else:
        text = f"{value:.3g}"
    return text.replace("-", _MINUS)


def signed(value: float | None, decimals: int | None = None) -> str:
    """The same with its sign, for scores and differences."""
    text = number(value, decimals)
    return f"+{text}" if _finite(value) and value > 0 else text


def as_text(text: Any) -> str:
    """A prompt or response as plain text; of a list of messages one paragraph each, `role: content`."""
    if isinstance(text, list):
        return "\n".join(f"{message.get('role', '?')}: {message.get('content', '')}" for message in text)
    return str(text)


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
