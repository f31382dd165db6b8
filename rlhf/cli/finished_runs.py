"""Commands for the folders of runs: finished, half finished, or going on."""

from pathlib import Path
from typing import Annotated

import typer

from rlhf.cli.arguments import Debug
from rlhf.cli.errors import errors_explained

commands = typer.Typer()


@commands.command()
def inspect(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder, e.g. runs/quickstart.")],
    beside: Annotated[
        list[Path] | None, typer.Argument(metavar="[RUN]...", help="Other runs: their curves are drawn over these.")
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the page on this machine while the run goes on.")
    ] = False,
    port: Annotated[int, typer.Option(help="With --serve; 0 takes a free one.")] = 0,
    iteration: Annotated[int | None, typer.Option(min=1, help="With --worst or --best: only this one.")] = None,
    worst: Annotated[int | None, typer.Option(min=1, help="Print the lowest scored episodes, token by token.")] = None,
    best: Annotated[int | None, typer.Option(min=1, help="Print the highest scored ones.")] = None,
    by: Annotated[
        str, typer.Option(help="With --worst or --best: by which number, e.g. kl or component/NAME.")
    ] = "score",
    picture: Annotated[Path | None, typer.Option(help="Also draw reward curve and one example, .png or .svg.")] = None,
    debug: Debug = False,
) -> None:
    """Builds the page of a run, report.html; or prints episodes token by token."""
    with errors_explained(debug):
        if worst is not None or best is not None:
            return _print_episodes(run, iteration, worst, best, by)
        if serve:
            return _serve(run, beside or [], port)
        from rlhf.report.report import build_report, save_curve_picture

        typer.echo(build_report(run, beside or []))
        if picture is not None:
            typer.echo(save_curve_picture(run, picture))


def _print_episodes(folder: Path, iteration: int | None, worst: int | None, best: int | None, by: str) -> None:
    from rich.console import Console

    from rlhf.report.terminal import print_episodes
    from rlhf.results.run import load_run

    run, console = load_run(folder), Console(highlight=False)
    if worst is not None:
        print_episodes(console, run, run.worst(worst, by=by, iteration=iteration))
    if best is not None:
        print_episodes(console, run, run.best(best, by=by, iteration=iteration))


def _serve(run: Path, beside: list[Path], port: int) -> None:
    from rlhf.report.serve import PageServer

    with PageServer(run, beside, port) as server:
        typer.echo(f"{server.address} shows {run} while it goes on; Ctrl-C ends it")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("ended")
