"""Keeping transformers' progress bars and load reports off the screen, where the run's own progress stands."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import modeling_gguf_pytorch_utils
from transformers.utils import logging


@contextmanager
def quiet() -> Iterator[None]:
    """Let transformers print errors only. What its load reports warn of (missing weights) is checked in `load.py`."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    gguf_bar = modeling_gguf_pytorch_utils.tqdm  # tqdm's own, which no setting of transformers' reaches
    modeling_gguf_pytorch_utils.tqdm = _no_bar
    try:
        yield
    finally:
        modeling_gguf_pytorch_utils.tqdm = gguf_bar
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _no_bar(items: Iterable[Any], **_: Any) -> Iterable[Any]:
    return items
