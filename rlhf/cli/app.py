"""The `rlhf` command: puts the families of commands together."""

import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from rlhf.cli import finished_runs, listings, probe, stages
from rlhf.tracking import terminal

__all__ = ["app", "main"]

app = typer.Typer(
    name="rlhf",
    help="SFT, reward model and PPO for language models, from one configuration file.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
for family in (stages, finished_runs, listings, probe):
    app.add_typer(family.commands)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"rlhf {version('rlhf-trainer')}")
        raise typer.Exit


@app.callback()
def _begin(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    terminal.use("normal")


def main() -> None:
    """Entry point of the `rlhf` command and of `python -m rlhf`."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # read when TRL and huggingface_hub are imported
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # so that `module:function` finds the user's own modules, as python -m does
    app()
