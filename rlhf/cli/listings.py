"""Commands that list what there is to choose from: keys of a config, metrics, text environments, reward functions."""

from typing import Annotated

import typer

from rlhf.cli.arguments import Debug, keywords
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


environments = typer.Typer(help="Text environments: without a command, those that are registered.")
commands.add_typer(environments, name="envs")


@environments.callback(invoke_without_command=True)
def envs(context: typer.Context, debug: Debug = False) -> None:
    """Lists the registered text environments, their turns and where their rewards come from."""
    if context.invoked_subcommand is not None:
        return
    with errors_explained(debug):
        from envs.listing import describe_envs

        typer.echo(describe_envs())


@environments.command()
def check(
    id: Annotated[str, typer.Argument(metavar="ID", help="As in ppo.environment.id, e.g. my_env:Guess-v0.")],
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Arguments of the environment, in YAML.")
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="Random episodes, each played twice.")] = 10,
    max_turns: Annotated[int, typer.Option(min=1, help="Responses of an episode that does not end before.")] = 8,
    debug: Debug = False,
) -> None:
    """Plays an environment without a model and says in words what is wrong; exit code 2 if anything is."""
    with errors_explained(debug):
        from envs.check import check_text_env

        findings = check_text_env(id, keywords(arguments or ()), episodes=episodes, max_turns=max_turns)
        typer.echo("\n".join([id, *map(str, findings)]))
        if any(finding.level == "wrong" for finding in findings):
            raise typer.Exit(2)


@commands.command()
def rewards(debug: Debug = False) -> None:
    """Lists the built-in reward functions."""
    with errors_explained(debug):
        from reward_models.registry import describe_rewards

        typer.echo(describe_rewards())
