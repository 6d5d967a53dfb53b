"""`frontier from-command` and `frontier to-command`: scenarios and launch commands, either way."""

from __future__ import annotations

from typing import Any

import click

from frontier.cli import output
from frontier.cli.options import json_option, scenario_argument, set_option


@click.command("from-command", short_help="Make a scenario of a launch command.")
@click.argument("command", metavar="COMMAND")
@click.option("--hardware", required=True, metavar="GPU", help="The GPU: a preset's name or a YAML file.")
@click.option("--trace", required=True, metavar="TRACE", help="The workload: a trace file or a built-in one.")
@click.option(
    "--version", "engine_version", metavar="VERSION", help="Version of the engine; the newest if left out."
)
@click.option("--model", metavar="MODEL", help="A preset or config.json instead of the command's model.")
@click.option("--strict", is_flag=True, help="Fail if a flag is not simulated.")
@json_option
def from_command(  # noqa: PLR0917 - click passes them by name
    command: str,
    hardware: str,
    trace: str,
    engine_version: str | None,
    model: str | None,
    strict: bool,
    as_json: bool,
) -> None:
    """Print the scenario that COMMAND starts: "vllm serve ..." or "python -m sglang.launch_server ...".

    Flags that change a real run in ways that are not simulated, and flags without effect, go to stderr.
    """
    from frontier.launch import from_command as read  # noqa: PLC0415 - slow to import

    launch = read(
        command,
        hardware=hardware,
        workload={"trace": trace},
        version=engine_version,
        model=model,
        strict=strict,
    )
    if as_json:
        remarks = {
            name: [{"flag": r.flag, "value": r.value, "reason": r.reason} for r in getattr(launch, name)]
            for name in ("unsupported", "neutral")
        }
        document: dict[str, Any] = {"scenario": launch.scenario.to_dict(defaults=False), **remarks}
        output.print_json(document)
        return
    click.echo(launch.scenario.to_yaml(defaults=False), nl=False)
    if launch.unsupported or launch.neutral:
        click.echo(launch.summary(), err=True)


@click.command("to-command", short_help="Print the command that launches a scenario.")
@scenario_argument
@set_option
@click.option(
    "--for",
    "target",
    type=click.Choice(("vllm", "sglang", "dynamo")),
    help="What to launch with; the scenario's engine if left out.",
)
def to_command(scenario: str, overrides: tuple[str, ...], target: str | None) -> None:
    """Print the command, or Dynamo's manifest, that launches SCENARIO as it was simulated."""
    from frontier import launch  # noqa: PLC0415 - slow to import
    from frontier.config import load  # noqa: PLC0415 - slow to import

    chosen = load(scenario, overrides=overrides)
    write = {"vllm": launch.to_vllm, "sglang": launch.to_sglang, "dynamo": launch.to_dynamo}
    click.echo(write[target or chosen.engine.name](chosen).rstrip("\n"))
