"""TensorBoard event files under `run_dir/tensorboard/STAGE`: scalars only; tables go to W&B and to parquet."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["TensorBoardSink"]


class TensorBoardSink:
    """Writes one stage's scalars.

    The writer is made by the first `log`, because that tells from which step a resumed or repeated stage goes on:
    TensorBoard then hides what the folder holds from that step on instead of drawing two curves over each other.
    """

    def __init__(self, run_dir: Path, stage: str) -> None:
        self._folder = run_dir / "tensorboard" / stage
        self._writer: SummaryWriter | None = None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Adds one point to each metric's curve."""
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self, failed: bool = False) -> None:
        """Writes what is pending; TensorBoard has no place for how the stage ended."""
        if self._writer is not None:
            self._writer.close()
