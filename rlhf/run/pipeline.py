"""The stages of a run in order: skips what is finished, runs the rest, remembers it in the manifest.

    plan (fingerprints against the manifest) -> preflight
    -> for each stage: seed, tracker, stage.run, manifest -> report

A stage works beside the place of its output, which is replaced when it has succeeded, so that a stage that fails or is
interrupted costs nothing that was finished before. In a distributed run the first process makes the plan, all run the
stages together, and only the first one writes here.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rlhf.config.load import LoadedConfig, save_resolved
from rlhf.config.schema import Config
from rlhf.config.tree import OVERRIDE
from rlhf.errors import StageError
from rlhf.files.run_folder import STAGES, RunFolder
from rlhf.launch.processes import barrier, from_first_process
from rlhf.launch.rank import is_main_process
from rlhf.run.fingerprint import Input, changes, configured_stages, fingerprints, upstream_of
from rlhf.run.lineage import lineage
from rlhf.run.manifest import Manifest, StageRecord, list_outputs, versions
from rlhf.run.summary import evaluation_facts, print_comparison
from rlhf.tracking import terminal
from rlhf.tracking.pace import format_seconds

if TYPE_CHECKING:
    from rlhf.launch.runtime import Runtime
    from rlhf.tracking.tracker import Tracker

# run(config, folder, tracker, runtime, inputs) writes the stage's output and returns what the manifest keeps
StageFunction: TypeAlias = Callable[[Config, RunFolder, "Tracker", "Runtime", Any], dict[str, Any]]

_REASONS_SHOWN = 3


@dataclass(frozen=True)
class Step:
    """What is to be done about one stage.

    Attributes:
        stage: Its name.
        fingerprint: Hash of its inputs.
        inputs: What its result depends on.
        reason: Why it runs; None if it is finished and nothing changed.
    """

    stage: str
    fingerprint: str
    inputs: Sequence[Input]
    reason: str | None


def folder_of(config: Config) -> RunFolder:
    """The run folder that a configuration names."""
    return RunFolder(Path(config.runs_dir).expanduser() / config.name)


def make_plan(config: Config, manifest: Manifest, only: str | None = None) -> list[Step]:
    """Compares the configuration with what is finished.

    Args:
        config: The configuration.
        manifest: The finished stages.
        only: Plan this stage alone; the stages that it reads must be finished.

    Raises:
        StageError: There is nothing to run, or what `only` reads is missing or out of date.
        UserError: Something that a stage reads cannot be found.
    """
    stages = configured_stages(config)
    if not stages or only not in (None, *stages):
        sections = only or f"of {', '.join(STAGES)}"
        raise StageError(f"The config has no section {sections}: add it, or choose another command.")
    steps: dict[str, Step] = {}
    for stage, (fingerprint, inputs) in fingerprints(config).items():
        reason = _reason_to_run(stage, fingerprint, inputs, manifest)
        again = [name for name in upstream_of(config, stage) if steps[name].reason is not None]
        if reason is None and again:
            reason = f"stage {again[0]} runs again"
        steps[stage] = Step(stage, fingerprint, inputs, reason)
    if only is not None:
        _require_upstream(config, only, steps, manifest)
        steps = {only: steps[only]}
    return list(steps.values())


def run_pipeline(loaded: LoadedConfig, only: str | None = None) -> None:
    """Runs all stages, or one, except those that are finished; prints what it does and, at the end, the comparison.

    Raises:
        StageError: See `make_plan`.
        UserError: A mistake that shows only while a stage runs.
    """
    config = loaded.config
    folder = folder_of(config)
    manifest, steps = from_first_process(lambda: _manifest_and_plan(config, folder, only))
    due = [step.stage for step in steps if step.reason is not None]
    runtime = _runtime(config) if due else None
    inputs = prepare_stages(config, due) if due else {}
    if is_main_process() and not _is_saved(loaded, folder):
        save_resolved(loaded, folder.config)
    for number, step in enumerate(steps, start=1):
        why = step.reason or f"skipped, {_when(manifest.stages[step.stage])}"
        runs, of = step.reason is not None, len(steps)
        terminal.say(
            f"{step.stage}: {why}", event="stage", stage=step.stage, number=number, stages=of, runs=runs, why=why
        )
        if step.reason is not None and runtime is not None:
            place = f"stage {number} of {len(steps)}"
            with _report_of_a_failure(config, folder):
                _run_stage(step, config, folder, manifest, runtime, inputs.pop(step.stage), place)
    if is_main_process():
        _conclude(steps, config, folder)


def stage_functions() -> dict[str, StageFunction]:
    """The stages by name. They are imported only when one is to run: torch and transformers take seconds."""
    from rlhf.stages import evaluate, ppo, reward, sft

    return {"sft": sft.run, "reward": reward.run, "ppo": ppo.run, "evaluate": evaluate.run}


def prepare_stages(config: Config, stages: Sequence[str]) -> dict[str, Any]:
    """Read and check all that the stages will need; see `rlhf.stages.preflight`."""
    from rlhf.stages.preflight import preflight

    return preflight(config, stages)


def _manifest_and_plan(config: Config, folder: RunFolder, only: str | None) -> tuple[Manifest, list[Step]]:
    manifest = Manifest.read(folder.manifest)
    return manifest, make_plan(config, manifest, only)


def _reason_to_run(stage: str, fingerprint: str, inputs: Sequence[Input], manifest: Manifest) -> str | None:
    record = manifest.stages.get(stage)
    if record is None:
        return "not finished yet"
    if record.fingerprint != fingerprint:
        found = changes(record.inputs, inputs)
        more = f" and {len(found) - _REASONS_SHOWN} more" if len(found) > _REASONS_SHOWN else ""
        return "; ".join(found[:_REASONS_SHOWN]) + more
    for name, size in record.outputs.items():
        file = manifest.path.parent / name
        if not file.is_file() or file.stat().st_size != size:
            return f"its output {name} is missing or was changed"
    return None


def _require_upstream(config: Config, stage: str, steps: Mapping[str, Step], manifest: Manifest) -> None:
    for needed in upstream_of(config, stage):
        reason = steps[needed].reason
        if reason is None:
            continue
        state = "has not finished" if needed not in manifest.stages else f"is out of date: {reason}"
        raise StageError(
            f"{stage} reads the result of stage {needed}, which {state} (in {manifest.path.parent}). "
            f"Run `rlhf {needed} CONFIG` first, or `rlhf run CONFIG` for all stages."
        )


def _runtime(config: Config) -> "Runtime":
    """Decide, once for all stages, where this process computes; torch is imported only now."""
    from rlhf.launch.runtime import Runtime

    return Runtime.detect(config.runtime)


def _run_stage(
    step: Step, config: Config, folder: RunFolder, manifest: Manifest, runtime: "Runtime", inputs: Any, place: str
) -> None:
    from transformers import set_seed
    from transformers.utils.logging import disable_progress_bar

    from rlhf.tracking.tracker import Tracker

    run = stage_functions()[step.stage]
    working = folder.while_running(step.stage)
    if is_main_process():
        _remove(working.output_of(step.stage))  # of an attempt that failed
    barrier()
    started, clock = datetime.now(UTC), time.perf_counter()
    disable_progress_bar()  # its bars for loading and saving would break into that of the stage
    set_seed(config.seed)
    plain = config.model_dump(mode="json")
    with Tracker.open(folder.root, config.tracking, plain, step.stage, step.fingerprint, place) as tracker:
        results = run(config, working, tracker, runtime, inputs)
        barrier()  # every process has written its part
        if is_main_process():
            seconds = round(time.perf_counter() - clock, 3)
            _finish(step, config.seed, folder, manifest, results, started, seconds)
            tracker.log_artifacts(*lineage(config, folder, step.stage, upstream_of(config, step.stage)))
    barrier()


def _finish(
    step: Step,
    seed: int,
    folder: RunFolder,
    manifest: Manifest,
    results: dict[str, Any],
    started: datetime,
    seconds: float,
) -> None:
    """Puts the stage's output into its place and the stage into the manifest."""
    output = folder.output_of(step.stage)
    manifest.drop(step.stage)  # first: whatever happens now, no record speaks of files that are not its own
    _remove(output)
    os.replace(folder.while_running(step.stage).output_of(step.stage), output)
    record = StageRecord(
        fingerprint=step.fingerprint,
        inputs={entry.name: entry.value for entry in step.inputs},
        outputs=list_outputs(folder.root, output),
        results=results,
        started=started.isoformat(timespec="seconds"),
        seconds=seconds,
        seed=seed,
        versions=versions(),
    )
    manifest.put(step.stage, record)


def _conclude(steps: Sequence[Step], config: Config, folder: RunFolder) -> None:
    """Builds the report and says what came out and where it lies."""
    has_run = any(step.reason is not None for step in steps)
    if config.tracking.report and (has_run or not folder.report.is_file()):
        from rlhf.report.report import build_report

        build_report(folder.root)
        if has_run:
            _publish_report(steps, config, folder)
    if any(step.stage == "evaluate" for step in steps):
        print_comparison(terminal.console(), folder.evaluate)
        terminal.emit({"event": "evaluation", **evaluation_facts(folder.evaluate)})
    terminal.say(f"Run folder: {folder.root}", event="run_folder", result=True, path=folder.root)
    if folder.report.is_file():
        terminal.say(f"Report: {folder.report}", event="report", result=True, path=folder.report)


@contextmanager
def _report_of_a_failure(config: Config, folder: RunFolder) -> Iterator[None]:
    """Builds the report of what there is where a stage fails or is interrupted; the error goes on its way."""
    try:
        yield
    except BaseException:
        if is_main_process() and config.tracking.report:
            with suppress(Exception):  # what ended the stage is what the user must see
                from rlhf.report.report import build_report

                terminal.say(f"Report: {build_report(folder.root)}", event="report", result=True, path=folder.report)
        raise


def _publish_report(steps: Sequence[Step], config: Config, folder: RunFolder) -> None:
    """Hands the report to the trackers, as something that the last stage made."""
    from rlhf.tracking.sink import Artifact
    from rlhf.tracking.tracker import Tracker

    last, plain = steps[-1], config.model_dump(mode="json")
    with Tracker.open(folder.root, config.tracking, plain, last.stage, last.fingerprint) as tracker:
        tracker.log_artifacts([], [Artifact("report", "report", folder.report, {})])


def _when(record: StageRecord) -> str:
    return f"nothing changed since {record.started} (it took {format_seconds(record.seconds)})"


def _is_saved(loaded: LoadedConfig, folder: RunFolder) -> bool:
    """A run started from its own resolved file keeps it: it says where values came from in the first place."""
    own = loaded.path is not None and loaded.path.resolve() == folder.config.resolve()
    return own and OVERRIDE not in loaded.provenance.values()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
