"""`rlhf run CONFIG --dry-run`: the plan and the preflight of a run, and no more."""

from rich.console import Console

from rlhf.config.load import LoadedConfig
from rlhf.run.manifest import Manifest
from rlhf.run.pipeline import folder_of, make_plan, prepare_stages


def dry_run(loaded: LoadedConfig, only: str | None = None) -> None:
    """Say what would run and why, after the checks that a run begins with. Nothing is trained or written.

    Raises:
        StageError: See `make_plan`.
        UserError: A mistake in what some stage would read.
    """
    config = loaded.config
    steps = make_plan(config, Manifest.read(folder_of(config).manifest), only)
    due = [step.stage for step in steps if step.reason is not None]
    inputs = prepare_stages(config, due) if due else {}
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for step in steps:
        rows = getattr(inputs.get(step.stage), "rows", None)
        found = f" ({rows.summary()})" if rows is not None else ""
        console.print(f"{step.stage}: {step.reason or 'finished, would be skipped'}{found}")
    console.print(f"Checked: {', '.join(due) or 'nothing is left to run'}. Run folder: {folder_of(config).root}")
