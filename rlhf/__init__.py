"""SFT, reward model and PPO for language models, from one configuration file.

`rlhf.load_run(path)` reads a run folder back: metrics and rollouts as tables of pandas and pyarrow.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf.results.run import Run, load_run

__all__ = ["Run", "load_run"]


def __getattr__(name: str) -> Any:
    """Imports what is public when it is asked for: the commands must start fast."""
    if name in __all__:
        from rlhf.results import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
