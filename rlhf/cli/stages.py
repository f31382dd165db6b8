"""Commands that run stages of a configuration: `run` for all of them, `sft`, `reward`, `ppo` and `evaluate` for one."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rlhf.cli.arguments import ConfigFile, Debug, Json, Overrides, Processes, Quiet, Zero
from rlhf.cli.errors import errors_explained
from rlhf.cli.options import ConfigCommand

if TYPE_CHECKING:
    from rlhf.config.load import LoadedConfig

commands = typer.Typer()


@commands.command(cls=ConfigCommand)
def run(
    config: ConfigFile,
    overrides: Overrides = None,
    processes: Processes = None,
    zero: Zero = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything that a run would read, say what would run, and stop.")
    ] = False,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Runs all stages of CONFIG, skipping what is finished."""
    if not dry_run:
        return _start(None, config, overrides, processes, zero, debug)
    with errors_explained(debug):
        from rlhf.run.dry_run import dry_run as check

        check(_load(config, overrides, processes, zero))


@commands.command(cls=ConfigCommand)
def sft(
    config: ConfigFile,
    overrides: Overrides = None,
    processes: Processes = None,
    zero: Zero = None,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Supervised fine-tuning alone."""
    _start("sft", config, overrides, processes, zero, debug)


@commands.command(cls=ConfigCommand)
def reward(
    config: ConfigFile,
    overrides: Overrides = None,
    processes: Processes = None,
    zero: Zero = None,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """The reward model alone."""
    _start("reward", config, overrides, processes, zero, debug)


@commands.command(cls=ConfigCommand)
def ppo(
    config: ConfigFile,
    overrides: Overrides = None,
    processes: Processes = None,
    zero: Zero = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print how prompts become optimizer steps, and run nothing.")
    ] = False,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Policy optimisation alone."""
    if not explain:
        return _start("ppo", config, overrides, processes, zero, debug)
    with errors_explained(debug):
        from rlhf.planning.explain import print_explanation

        print_explanation(_load(config, overrides, processes, zero).config)


@commands.command(cls=ConfigCommand)
def evaluate(
    config: ConfigFile,
    overrides: Overrides = None,
    processes: Processes = None,
    zero: Zero = None,
    policy: Annotated[
        str | None,
        typer.Option(help="Score this policy (folder, Hub id, .gguf, package:NAME) alone, without any training."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="With --policy: write numbers and responses here, as JSON.")
    ] = None,
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """The comparison of the policy before and after PPO alone; with --policy, any one policy."""
    if policy is None:
        return _start("evaluate", config, overrides, processes, zero, debug)
    with errors_explained(debug):
        from rich.console import Console

        from rlhf.evaluation.table import print_policy
        from rlhf.run.pipeline import folder_of
        from rlhf.stages.evaluate_policy import evaluate_policy, write_result

        loaded = _load(config, overrides, None, None).config
        if loaded.evaluate is None:
            loaded = _load(config, [*(overrides or ()), "evaluate={}"], None, None).config
        result = evaluate_policy(loaded, policy, folder_of(loaded))
        print_policy(Console(highlight=False, markup=False), result)
        if output is not None:
            write_result(result, output)


@commands.command(cls=ConfigCommand)
def study(
    config: ConfigFile,
    overrides: Overrides = None,
    seeds: Annotated[str, typer.Option(help="Seeds, e.g. 0,1,2.")] = "0,1,2",
    quiet: Quiet = False,
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Repeats CONFIG for several seeds and lets a reward model judge that no policy was trained on."""
    with errors_explained(debug):
        from rlhf.launch.accelerate import refuse_unsupported_launch
        from rlhf.study.study import parse_seeds, run_study

        refuse_unsupported_launch(os.environ)
        typer.echo(run_study(config, overrides or (), parse_seeds(seeds)).read_text(encoding="utf-8"))


def _start(
    stage: str | None, config: Path, overrides: list[str] | None, processes: int | None, zero: int | None, debug: bool
) -> None:
    with errors_explained(debug):
        from rlhf.launch.accelerate import refuse_unsupported_launch
        from rlhf.run.start import start

        refuse_unsupported_launch(os.environ)
        raise typer.Exit(start(_load(config, overrides, processes, zero), stage, sys.argv[1:]))


def _load(config: Path, overrides: list[str] | None, processes: int | None, zero: int | None) -> "LoadedConfig":
    from rlhf.config.load import load_config
    from rlhf.run.start import distributed_overrides

    return load_config(config, [*(overrides or ()), *distributed_overrides(processes, zero)])
