"""The lines that `rlhf probe` prints, one a probe, each as soon as it is there."""

from rlhf.probe.probes import Result

__all__ = ["HEADER", "line"]

HEADER = f"{'probe':<10} {'first':>6} {'score':>6} {'best':>5} {'distance':>9}  verdict"


def line(result: Result) -> str:
    """One probe's line."""
    verdict = "reached" if result.reached else f"MISSED: look at {result.tests}"
    return (
        f"{result.name:<10} {result.first:>6.2f} {result.score:>6.2f} {result.best:>5.2f} {result.distance:>9.2f}  "
        f"{verdict}"
    )
