"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from rlhf.tracking import terminal

ConfigFile: TypeAlias = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="YAML file, e.g. configs/quickstart.yaml.")
]
Overrides: TypeAlias = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, e.g. ppo.learning_rate=1e-5 seed=1.")
]
Processes: TypeAlias = Annotated[int | None, typer.Option(min=1, help="Processes on this machine.")]
Zero: TypeAlias = Annotated[int | None, typer.Option(min=0, max=3, help="DeepSpeed ZeRO stage.")]


def _quiet(value: bool) -> None:
    if value:
        terminal.use("quiet")


def _json(value: bool) -> None:
    if value:
        terminal.use("json")


Quiet: TypeAlias = Annotated[
    bool, typer.Option("--quiet", "-q", callback=_quiet, help="Show results and errors only, no progress or warnings.")
]
Json: TypeAlias = Annotated[
    bool, typer.Option("--json", callback=_json, help="Print metrics and results as lines of JSON.")
]
Debug: TypeAlias = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
