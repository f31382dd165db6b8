"""What a stage read and what it made, for trackers that draw the way from data to policy."""

from collections.abc import Sequence
from pathlib import Path

from rlhf.config.schema import Config
from rlhf.files.run_folder import RunFolder
from rlhf.tracking.sink import Artifact


def lineage(
    config: Config, folder: RunFolder, stage: str, upstream: Sequence[str]
) -> tuple[list[Artifact], list[Artifact]]:
    """Artifacts read and artifacts made.

    Args:
        config: The configuration.
        folder: The run folder; the stage's output lies in its place.
        stage: The stage.
        upstream: The stages whose output it reads.
    """
    section = getattr(config, stage)
    read = [_output(folder, name) for name in upstream]
    if not upstream and config.model.path is not None:
        read.append(_outside("base-model", "model", config.model.path))
    for source in section.data.sources if section.data is not None else ():
        read.append(_outside(f"{stage}-data-{Path(source.path).stem}", "dataset", source.path))
    return read, [_output(folder, stage)]


def _output(folder: RunFolder, stage: str) -> Artifact:
    path = folder.output_of(stage)
    kind = "evaluation" if stage == "evaluate" else "model"
    return Artifact(stage, kind, path, {"stage": stage, "place": str(path)})


def _outside(name: str, kind: str, source: str) -> Artifact:
    path = Path(source)
    return Artifact(name, kind, path if path.exists() else None, {"source": source})
