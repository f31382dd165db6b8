"""The command that trains environments whose best score is known."""

from typing import Annotated

import typer

from rlhf.cli.arguments import Debug, Overrides
from rlhf.cli.errors import errors_explained

commands = typer.Typer()


@commands.command()
def probe(
    overrides: Overrides = None,
    only: Annotated[str | None, typer.Option(help="Names with commas between, e.g. token,copy; default: all.")] = None,
    debug: Debug = False,
) -> None:
    """Trains five tiny environments whose best score is known; exit code 2 if one is missed."""
    with errors_explained(debug):
        from rlhf.probe.probes import run_probes
        from rlhf.probe.table import HEADER, line

        names = [name.strip() for name in only.split(",")] if only else []
        typer.echo(HEADER)
        missed = False
        for result in run_probes(names, overrides or ()):
            typer.echo(line(result))
            missed = missed or not result.reached
        if missed:
            raise typer.Exit(2)
