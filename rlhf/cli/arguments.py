"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

ConfigFile: TypeAlias = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="YAML file, e.g. configs/quickstart.yaml.")
]
Overrides: TypeAlias = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Overrides, e.g. ppo.learning_rate=1e-5 seed=1.")
]
Processes: TypeAlias = Annotated[int | None, typer.Option(min=1, help="Processes on this machine.")]
Zero: TypeAlias = Annotated[int | None, typer.Option(min=0, max=3, help="DeepSpeed ZeRO stage.")]
Debug: TypeAlias = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
