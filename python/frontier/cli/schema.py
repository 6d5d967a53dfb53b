"""`frontier schema`: the JSON Schema of scenarios."""

from __future__ import annotations

import json
from pathlib import Path

import click

from frontier.errors import FrontierError


@click.command(short_help="Print the JSON Schema of scenarios.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write to this file instead of the standard output.",
)
def schema(out: Path | None) -> None:
    """Print the JSON Schema of scenarios.

    Editors use it to complete and check scenario files; with yaml-language-server, begin the file with

    \b
      # yaml-language-server: $schema=scenario.schema.json
    """  # noqa: D301 - \b is the character that keeps click from rewrapping
    from frontier.config import json_schema  # noqa: PLC0415 - slow to import

    text = json.dumps(json_schema(), indent=2, ensure_ascii=False)
    if out is None:
        click.echo(text)
        return
    try:
        out.write_text(text + "\n", "utf-8")
    except OSError as error:
        raise FrontierError(f"cannot write {out}: {error.strerror or error}") from None
    click.echo(f"written to {out}", err=True)
