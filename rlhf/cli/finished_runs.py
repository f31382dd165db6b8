"""Commands for the folders of runs that are finished, or half finished."""

from pathlib import Path
from typing import Annotated

import typer

from rlhf.cli.arguments import Debug
from rlhf.cli.errors import errors_explained

commands = typer.Typer()


@commands.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, e.g. runs/quickstart.")],
    picture: Annotated[Path | None, typer.Option(help="Also draw reward curve and one example, .png or .svg.")] = None,
    debug: Debug = False,
) -> None:
    """Builds the report of a run folder again."""
    with errors_explained(debug):
        from rlhf.report.report import build_report, save_curve_picture

        typer.echo(build_report(run))
        if picture is not None:
            typer.echo(save_curve_picture(run, picture))
