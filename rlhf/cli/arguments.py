"""Arguments and options that several commands have."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

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


def keywords(texts: Sequence[str]) -> dict[str, Any]:
    """Read `KEY=VALUE` arguments, the values in YAML.

    Raises:
        ConfigError: An argument has no `=`, or its value is no YAML.
    """
    from rlhf.config.yaml_reader import parse_scalar
    from rlhf.errors import ConfigError

    values = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"{text!r} is no argument: write KEY=VALUE, e.g. max_turns=4")
        values[name] = parse_scalar(value)
    return values
