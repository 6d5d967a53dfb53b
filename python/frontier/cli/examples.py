"""`frontier examples`: the scenarios that come with the package."""

from __future__ import annotations

import click

from frontier.builtin_examples import example_path
from frontier.builtin_examples import examples as described
from frontier.cli import output
from frontier.cli.options import json_option


@click.command(short_help="List example scenarios, or print one to start from.")
@click.argument("name", required=False)
@json_option
def examples(name: str | None, as_json: bool) -> None:
    """List the example scenarios, or print the YAML of NAME to start from.

    \b
      frontier examples chat-poisson > mine.yaml
      frontier run mine.yaml

    With --json, each is an object with name, description and, of NAME alone, its YAML.
    """  # noqa: D301 - \b is the character that keeps click from rewrapping
    if name is None:
        listed = described()
        if as_json:
            output.print_json([{"name": each, "description": text} for each, text in listed.items()])
            return
        width = max(map(len, listed))
        for each, text in listed.items():
            click.echo(f"{each:<{width}}  {text}")
        return
    text = example_path(name).read_text("utf-8")
    if as_json:
        output.print_json({"name": name, "description": described()[name], "yaml": text})
    else:
        click.echo(text, nl=False)
