"""TensorBoard event files under `run_dir/tensorboard/STAGE`: scalars, histograms, responses, hyperparameters.

Some responses only are shown, as text; whole tables go to W&B and to Parquet.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.tracking.pictures import histograms
from rlhf.tracking.sink import Sink
from rlhf.tracking.text import as_text, signed

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["TensorBoardSink"]

_RESPONSES = 4  # as text, from each end


class TensorBoardSink(Sink):
    """Writes one stage's events.

    The writer is made by the first point, because that tells from which step a resumed or repeated stage goes on:
    TensorBoard then hides what the folder holds from that step on instead of drawing two curves over each other.

    Args:
        run_dir: The run folder.
        stage: Name of the subfolder.
        run_config: The resolved configuration.
    """

    def __init__(self, run_dir: Path, stage: str, run_config: Mapping[str, Any]) -> None:
        self._folder, self._stage = run_dir / "tensorboard" / stage, stage
        self._hyperparameters = dict(_flat(run_config.get(stage) or {}, stage))
        self._writer: SummaryWriter | None = None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Adds one point to each metric's curve."""
        writer = self._open(step)
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)

    def log_rollouts(self, rows: Sequence[Mapping[str, Any]], iteration: int) -> None:
        """Adds histograms, and the best and the worst responses as text."""
        writer = self._open(iteration)
        for name, values in histograms(rows).items():
            writer.add_histogram(f"{self._stage}/histograms/{name}", values, iteration)
        scored = sorted((row for row in rows if row.get("score") is not None), key=lambda row: -row["score"])
        shown = scored[:_RESPONSES] + scored[max(_RESPONSES, len(scored) - _RESPONSES) :]
        text = "\n\n".join(
            f"**{signed(row['score'])}**\n\n{_quoted(as_text(row.get('prompt')))}\n\n{_quoted(as_text(row.get('response')))}"
            for row in shown
        )
        writer.add_text(f"{self._stage}/responses", text, iteration)

    def close(self, failed: bool = False) -> None:
        """Writes what is pending; TensorBoard has no place for how the stage ended."""
        if self._writer is not None:
            self._writer.close()

    def _open(self, step: int) -> "SummaryWriter":
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter
            from torch.utils.tensorboard.summary import hparams

            self._writer = SummaryWriter(str(self._folder), purge_step=step)
            if self._hyperparameters:
                file: Any = self._writer.file_writer
                for summary in hparams(self._hyperparameters, {}):  # type: ignore[no-untyped-call]
                    file.add_summary(summary)  # add_hparams would make a folder of its own
        return self._writer


def _flat(section: Any, prefix: str) -> Sequence[tuple[str, Any]]:
    """Dotted key and value of all numbers, switches and texts of a section."""
    if isinstance(section, Mapping):
        return [pair for key, value in section.items() for pair in _flat(value, f"{prefix}.{key}")]
    return [(prefix, section)] if isinstance(section, bool | int | float | str) else []


def _quoted(text: str) -> str:
    """Text as a code block, which TensorBoard shows as it is."""
    return "\n".join(f"    {line}" for line in text.splitlines())
