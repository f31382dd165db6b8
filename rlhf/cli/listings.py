"""Commands that list what there is to choose from: keys of a config, metrics, text environments, reward functions."""

import typer

from rlhf.cli.arguments import Debug
from rlhf.cli.errors import errors_explained

commands = typer.Typer()


@commands.command()
def schema() -> None:
    """Prints the JSON schema of a config file, for editors."""
    from rlhf.config.json_schema import schema_text

    typer.echo(schema_text(), nl=False)


@commands.command()
def metrics() -> None:
    """Prints every metric: meaning, unit, healthy range and what to do outside it, in Markdown."""
    from rlhf.tracking.glossary import glossary_text

    typer.echo(glossary_text(), nl=False)


@commands.command()
def envs(debug: Debug = False) -> None:
    """Lists the registered text environments, their turns and where their rewards come from."""
    with errors_explained(debug):
        from envs.listing import describe_envs

        typer.echo(describe_envs())


@commands.command()
def rewards(debug: Debug = False) -> None:
    """Lists the built-in reward functions."""
    with errors_explained(debug):
        from reward_models.registry import describe_rewards

        typer.echo(describe_rewards())
