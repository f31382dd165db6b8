"""The command line: parses, loads the configuration, calls one function. Nothing heavy is imported before it is needed.

Exit codes: 0 done, 1 a bug of ours, 2 a mistake that the user can mend (one message, no traceback).
"""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from reward_models.errors import UserError

if TYPE_CHECKING:
    from rlhf.config.load import LoadedConfig

app = typer.Typer(
    name="rlhf",
    help="SFT, reward model and PPO for language models, from one configuration file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigFile: TypeAlias = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="YAML file, e.g. configs/quickstart.yaml.")
]
Overrides: TypeAlias = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, e.g. ppo.learning_rate=1e-5 seed=1.")
]
Processes: TypeAlias = Annotated[int | None, typer.Option(min=1, help="Processes on this machine.")]
Zero: TypeAlias = Annotated[int | None, typer.Option(min=0, max=3, help="DeepSpeed ZeRO stage.")]
Debug: TypeAlias = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def _run(
    stage: str | None, config: Path, overrides: list[str] | None, processes: int | None, zero: int | None, debug: bool
) -> None:
    """Runs one stage, or all of them."""
    with _errors_explained(debug):
        from rlhf.run.start import start

        raise typer.Exit(start(_load(config, overrides, processes, zero), stage, sys.argv[1:]))


def _load(config: Path, overrides: list[str] | None, processes: int | None, zero: int | None) -> "LoadedConfig":
    from rlhf.config.load import load_config
    from rlhf.run.start import distributed_overrides

    return load_config(config, [*(overrides or ()), *distributed_overrides(processes, zero)])


def _add_pipeline_command(name: str, help: str) -> None:
    @app.command(name, help=help)
    def command(
        config: ConfigFile,
        overrides: Overrides = None,
        processes: Processes = None,
        zero: Zero = None,
        debug: Debug = False,
    ) -> None:
        _run(None if name == "run" else name, config, overrides, processes, zero, debug)


_add_pipeline_command("run", "Runs all stages of CONFIG, skipping what is finished.")
_add_pipeline_command("sft", "Supervised fine-tuning alone.")
_add_pipeline_command("reward", "The reward model alone.")


@app.command()
def ppo(
    config: ConfigFile,
    overrides: Overrides = None,
    processes: Processes = None,
    zero: Zero = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print how prompts become optimizer steps, and run nothing.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Policy optimisation alone."""
    if not explain:
        return _run("ppo", config, overrides, processes, zero, debug)
    with _errors_explained(debug):
        from rlhf.planning.explain import print_explanation

        print_explanation(_load(config, overrides, processes, zero).config)


_add_pipeline_command("evaluate", "The comparison of SFT and PPO policy alone.")


@app.command()
def schema() -> None:
    """Prints the JSON schema of a config file, for editors."""
    from rlhf.config.json_schema import schema_text

    typer.echo(schema_text(), nl=False)


@app.command()
def envs() -> None:
    """Lists the registered text environments."""
    from envs.registry import list_envs

    for entry in list_envs():
        typer.echo(f"{entry.id}  {entry.summary}")


@app.command()
def rewards() -> None:
    """Lists the built-in reward functions."""
    from inspect import getdoc, signature

    from reward_models.registry import registered

    for name, function in sorted(registered().items()):
        summary = (getdoc(function) or "").partition("\n")[0]
        arguments = str(signature(function)).partition(" -> ")[0].replace("'", "")
        typer.echo(f"{name}{arguments}\n    {summary}")


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, e.g. runs/quickstart.")],
    picture: Annotated[Path | None, typer.Option(help="Also draw reward curve and one example, .png or .svg.")] = None,
    debug: Debug = False,
) -> None:
    """Builds the report of a run folder again."""
    with _errors_explained(debug):
        from rlhf.report.report import build_report, save_curve_picture

        typer.echo(build_report(run))
        if picture is not None:
            typer.echo(save_curve_picture(run, picture))


@app.command()
def study(
    config: ConfigFile,
    overrides: Overrides = None,
    seeds: Annotated[str, typer.Option(help="Seeds, e.g. 0,1,2.")] = "0,1,2",
    debug: Debug = False,
) -> None:
    """Repeats CONFIG for several seeds and lets a reward model judge that no policy was trained on."""
    with _errors_explained(debug):
        from rlhf.study.study import parse_seeds, run_study

        typer.echo(run_study(config, overrides or (), parse_seeds(seeds)).read_text(encoding="utf-8"))


def main() -> None:
    """Entry point of the `rlhf` command and of `python -m rlhf`."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when TRL and huggingface_hub are imported
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # so that `module:function` finds the user's own modules, as python -m does
    app()


@contextmanager
def _errors_explained(debug: bool) -> Iterator[None]:
    """Turns errors into messages and exit codes."""
    process = os.environ.get("RANK", "0")
    prefix = "" if process == "0" else f"process {process}: "
    try:
        yield
    except typer.Exit:
        raise
    except UserError as error:
        if debug:
            traceback.print_exc()
        typer.echo(f"{prefix}Error: {error}", err=True)
        raise typer.Exit(2) from None
    except Exception as error:
        if debug:
            traceback.print_exc()
        typer.echo(f"{prefix}Internal error: {type(error).__name__}: {error}", err=True)
        if not debug:
            typer.echo("This is a bug. Run again with --debug for the traceback, and report it.", err=True)
        raise typer.Exit(1) from None
