"""How a command ends: 0 done, 1 a bug of ours, 2 a mistake that the user can mend (one message, no traceback)."""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from reward_models.errors import UserError

__all__ = ["errors_explained"]


@contextmanager
def errors_explained(debug: bool) -> Iterator[None]:
    """Turn the errors of a command into messages and exit codes; with `debug` the traceback is shown too."""
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
