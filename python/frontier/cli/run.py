"""`frontier run`: simulate a scenario and print what came out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from frontier.cli import output
from frontier.cli.options import json_option, scenario_argument, set_option
from frontier.cli.progress import progress_bar
from frontier.errors import FrontierError

if TYPE_CHECKING:
    from frontier.results import Result


@click.command(short_help="Simulate a scenario and print the figures.")
@scenario_argument
@set_option
@click.option(
    "--warmup", metavar="SPAN", help="Leave out the start: a time (30s) or a share of the run (10%)."
)
@click.option("--cooldown", metavar="SPAN", help="Leave out its end.")
@click.option(
    "--on-bad-row",
    type=click.Choice(["error", "skip"]),
    help="What a trace row that cannot be read does: stop, or be left out and counted.",
)
@click.option(
    "--save",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Save the result: Parquet tables and result.json.",
)
@click.option("--overwrite", is_flag=True, help="Let --save replace a result that is there.")
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--no-progress", is_flag=True, help="Show no progress bar.")
def run(
    *,
    scenario: str,
    overrides: tuple[str, ...],
    warmup: str | None,
    cooldown: str | None,
    on_bad_row: str | None,
    save: Path | None,
    overwrite: bool,
    as_json: bool,
    quiet: bool,
    no_progress: bool,
) -> None:
    """Simulate SCENARIO, a YAML file or the name of a built-in example, and print the figures.

    \b
      frontier run azure-2023-conv
      frontier run azure-2023-conv --set cluster.replicas=4 --save results/r4
      frontier run mine.yaml --json > figures.json

    A progress bar shows on stderr when that is a terminal.
    """  # noqa: D301 - \b is the character that keeps click from rewrapping
    if overwrite and save is None:
        raise click.UsageError("--overwrite goes with --save")
    if save is not None:
        _check_target(save, overwrite=overwrite)
    from frontier.config import load  # noqa: PLC0415 - slow to import

    spans = {"warmup": warmup, "cooldown": cooldown}
    given = {name: json.dumps(span, ensure_ascii=False) for name, span in spans.items() if span is not None}
    window = [f"objectives.window.{name}={span}" for name, span in given.items()]
    chosen = load(scenario, overrides=[*overrides, *window])
    if on_bad_row is not None:
        if chosen.workload.trace is None:
            raise click.UsageError("--on-bad-row goes with a trace, which this scenario does not have")
        chosen = chosen.with_({"workload.trace.on_bad_row": on_bad_row})

    from frontier import simulate  # noqa: PLC0415 - slow to import

    with progress_bar(chosen, wanted=not (as_json or quiet or no_progress)) as update:
        result = simulate(chosen, progress=update)
    # The figures are shown even if they cannot be saved: the run may have been long.
    saved, failure = _save(result, save, overwrite=overwrite)
    if as_json:
        output.print_json(document(result, saved))
    elif not quiet:
        output.print_summary(result.summary())
        if saved is not None:
            click.echo(f"saved to {saved}")
    if failure is not None:
        raise failure


def document(result: Result, saved: Path | None) -> dict[str, Any]:
    """Return the JSON document of a run: times in seconds, shares in 0 ... 1, rates per second."""
    facts = result.facts
    return {
        "step_time": result.step_time,
        "digest": result.digest,
        "totals": dict(result.totals),
        "trust": result.trust.to_dict(),
        "summary": result.summary().to_dict(),
        "attribution": {kind: result.attribution(kind).to_dict() for kind in ("ttft", "e2el")},
        "scenario": dict(facts.scenario),
        "versions": dict(facts.versions),
        "predictors": [dict(used) for used in facts.predictors],
        "saved": None if saved is None else str(saved),
    }


def _check_target(path: Path, *, overwrite: bool) -> None:
    """Refuse a place where the result could not be saved, before a long run and not after it."""
    if not path.parent.is_dir():
        raise click.BadParameter(f"the directory {path.parent} does not exist", param_hint="--save")
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise click.BadParameter(
            f"{path} is not empty; choose another name, or replace a saved result with --overwrite",
            param_hint="--save",
        )


def _save(result: Result, path: Path | None, *, overwrite: bool) -> tuple[Path | None, FrontierError | None]:
    """Return where the result was saved, or why it was not."""
    if path is None:
        return None, None
    try:
        return result.save(path, overwrite=overwrite), None
    except FrontierError as error:
        return None, error
    except OSError as error:
        return None, FrontierError(f"cannot save to {path}: {error.strerror or error}")
