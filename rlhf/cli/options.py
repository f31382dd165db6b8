"""Options that the user mistook for keys of the configuration get a hint."""

from typing import Any

from typer.core import TyperCommand

__all__ = ["ConfigCommand"]


class ConfigCommand(TyperCommand):
    """A command whose configuration is overridden by `key=value`, without dashes."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See Click; an unknown option `--key value` is answered with `key=value`."""
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:  # Click's NoSuchOption, of the Click that this version of Typer brings
            if type(error).__name__ == "NoSuchOption":
                error.message += f". {_hint(given, str(getattr(error, 'option_name', '')))}"  # type: ignore[attr-defined]
            raise


def _hint(given: list[str], option: str) -> str:
    """How the option is written as a key."""
    option = next((argument for argument in given if argument.startswith(option)), option)
    key, equals, value = option.lstrip("-").partition("=")
    if not equals and option in given:
        following = given[given.index(option) + 1 :][:1]
        value = following[0] if following and not following[0].startswith("-") else "VALUE"
    section = "" if "." in key else ", with its section in front, e.g. ppo.learning_rate=1e-5"
    return f"Keys of the configuration are given without dashes: {key.replace('-', '_')}={value}{section}."
