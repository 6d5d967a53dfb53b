"""Arguments and options that several commands share."""

from __future__ import annotations

import click

from frontier.cli.group import note_json

json_option = click.option(
    "--json",
    "as_json",
    is_flag=True,
    is_eager=True,
    callback=note_json,
    help="Print one JSON document and nothing else; errors are JSON on stderr.",
)

set_option = click.option(
    "--set",
    "overrides",
    metavar="PATH=VALUE",
    multiple=True,
    help="Set a value of the scenario, as in cluster.replicas=4; may be repeated.",
)

scenario_argument = click.argument("scenario", metavar="SCENARIO")
