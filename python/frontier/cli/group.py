"""The group of all commands: help in sections, and errors turned into exit codes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import click

from frontier.cli.exits import INTERRUPTED, error_json, error_text, exit_code_of
from frontier.errors import FrontierError

_JSON = "frontier.cli.json"


class Cli(click.Group):
    """A group that lists its commands in titled sections and reports errors without a traceback."""

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[click.Command]], **kwargs: Any) -> None:
        """Take the commands by the title of their section."""
        super().__init__(*args, **kwargs)
        self.sections = sections
        for command in (command for commands in sections.values() for command in commands):
            self.add_command(command)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands in the order of the help."""
        return [str(command.name) for commands in self.sections.values() for command in commands]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section per title."""
        width = max(map(len, self.list_commands(ctx)))
        for title, commands in self.sections.items():
            with formatter.section(title):
                names = (str(command.name).ljust(width) for command in commands)
                helps = (command.get_short_help_str(100) for command in commands)
                formatter.write_dl(list(zip(names, helps, strict=True)))

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; an error or Ctrl-C ends it with its exit code."""
        if os.environ.get("NO_COLOR"):
            ctx.color = False
        try:
            return super().invoke(ctx)
        except FrontierError as error:
            as_json = ctx.meta.get(_JSON, False)
            click.echo(error_json(error) if as_json else error_text(error), err=True)
            ctx.exit(exit_code_of(error))
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)


def note_json(ctx: click.Context, _param: click.Parameter, wanted: bool) -> bool:
    """Remember that errors are wanted as JSON too."""
    ctx.meta[_JSON] = wanted
    return wanted
