"""What the terminal shows: text with progress (normal), results only (quiet), or one JSON object a line (json).

The command line chooses once, for the process; whatever prints asks here. Errors go to standard error in any case, and
so do warnings, except where the terminal is to be quiet.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any, Literal

from rich.console import Console

from rlhf.launch.rank import is_main_process

__all__ = ["console", "emit", "say", "shows_progress", "use"]

Mode = Literal["normal", "quiet", "json"]

_mode: Mode = "normal"


def use(mode: Mode) -> None:
    """Chooses what this process shows from now on."""
    global _mode
    _mode = mode
    logging.getLogger("rlhf").setLevel(logging.ERROR if mode == "quiet" else logging.NOTSET)


def shows_progress() -> bool:
    """Whether there are bars and spinners."""
    return _mode == "normal"


def console() -> Console:
    """Where results go as text; silent where lines of JSON are shown, and in all processes but the first."""
    return Console(highlight=False, soft_wrap=True, quiet=not is_main_process() or _mode == "json")


def say(text: str, *, event: str, result: bool = False, **fields: Any) -> None:
    """Prints one line: text, or an object with `event` and `fields`.

    Args:
        text: For people.
        event: For programs: what kind of line it is.
        result: Whether it is what the command is for; quiet shows nothing else.
        fields: The same for programs.
    """
    if _mode == "json":
        emit({"event": event, **fields})
    elif result or _mode == "normal":
        console().print(text, markup=False)


def emit(fields: Mapping[str, Any]) -> None:
    """Prints a line of JSON where such lines are shown."""
    if _mode == "json" and is_main_process():
        print(json.dumps(fields, ensure_ascii=False, default=str), flush=True)
