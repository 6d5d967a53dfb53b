"""`frontier validate`: simulate measured deployments and show the errors."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from frontier.cli import output
from frontier.cli.options import json_option

if TYPE_CHECKING:
    from frontier.validation import Report


@click.command(short_help="Compare simulated with measured deployments.")
@click.option(
    "--suite",
    "names",
    metavar="NAME",
    multiple=True,
    help="A suite; may be repeated. All of them if left out.",
)
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with the measured sets; suites that carry their figures need none.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write points.csv, groups.csv, report.md and report.json to, one folder below per suite.",
)
@json_option
@click.option("--no-progress", is_flag=True, help="Show no progress bar.")
def validate(
    *, names: tuple[str, ...], data: Path | None, out: Path | None, as_json: bool, no_progress: bool
) -> None:
    """Simulate measured deployments and show how far off the simulation is.

    \b
      frontier validate                                    # list the suites
      frontier validate --suite vllm-replay --data measured
      frontier validate --suite afd-papers                 # carries its figures
      frontier validate --data measured --out errors

    A suite whose files DATA does not have is skipped, and said to be.
    """  # noqa: D301 - \b is the character that keeps click from rewrapping
    from frontier import validation  # noqa: PLC0415 - slow to import

    suites = [validation.suite(name) for name in names or validation.SUITES]
    if data is None and not names:
        if as_json:
            output.print_json({each.name: {"title": each.title, "files": each.files} for each in suites})
        else:
            output.print_table(
                ("suite", "what was measured"), [(each.name, each.title) for each in suites], left=2
            )
        return
    reports: list[Report] = []
    skipped: dict[str, list[str]] = {}
    for each in suites:
        if missing := each.missing(data):
            skipped[each.name] = missing
            continue
        with _bar(each.name, wanted=not (as_json or no_progress)) as progress:
            report = validation.evaluate(each, data, progress=progress)
        if out is not None:
            report.write(out / each.name)
        reports.append(report)
        if not as_json:
            _show(report)
    if as_json:
        output.print_json({"suites": [report.to_dict() for report in reports], "skipped": skipped})
        return
    for name, missing in skipped.items():
        files = ", ".join(missing)
        why = f"needs {files} in the folder of --data" if data is None else f"{data} has no {files}"
        output.print_text(f"skipped {name}: {why}")


def _show(report: Report) -> None:
    header, rows = report.table()
    click.echo(f"\n{report.suite.name}: {report.suite.title}")
    output.print_table(header, rows, left=2)
    for reason, count in report.reasons().items():
        output.print_text(f"left out, {count:,}: {reason}")


@contextlib.contextmanager
def _bar(name: str, *, wanted: bool) -> Iterator[Callable[[int, int], None] | None]:
    """Show a bar on the standard error while cases run."""
    if not wanted or not sys.stderr.isatty():
        yield None
        return
    from frontier.cli.progress import new_bar  # noqa: PLC0415 - slow to import

    with new_bar(eta=True) as bar:
        task = bar.add_task(name, total=None)

        def update(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, refresh=True)

        yield update
