"""docs/metrics.md: all metrics as a page, made from `metrics.py`. `rlhf metrics` prints it."""

from collections.abc import Iterable

from rlhf.tracking.metric import Metric
from rlhf.tracking.metrics import METRICS
from rlhf.tracking.watch import PATIENCE

__all__ = ["glossary_text"]

_HEAD = f"""# Metrics

Everything that a run logs, to `metrics.jsonl`, W&B and TensorBoard. `rlhf metrics > docs/metrics.md` makes this page
from `rlhf/tracking/metrics.py`. Steps count from 1: optimizer steps in `sft` and `reward`, iterations in `ppo`.

Healthy ranges are rules of thumb. A metric that lies outside for {PATIENCE} points in a row, or in all points of a
shorter stage, or is no finite number, is warned of in the terminal, once, with the remedy below.
"""
_STAGES = {"sft": "SFT", "reward": "Reward model", "ppo": "PPO", "evaluate": "Evaluation"}


def glossary_text() -> str:
    """The page, in Markdown."""
    parts = [_HEAD]
    for stage, title in _STAGES.items():
        metrics = [metric for name, metric in METRICS.items() if name.startswith(f"{stage}/")]
        parts.append(f"## {title}\n\n" + "\n".join(_table(metrics)) + "\n")
    return "\n".join(parts)


def _table(metrics: Iterable[Metric]) -> Iterable[str]:
    yield "| metric | meaning | unit | healthy | outside |"
    yield "|---|---|---|---|---|"
    for metric in metrics:
        cells = (f"`{metric.name}`", metric.meaning, metric.unit, metric.range_text, metric.remedy)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
