"""`frontier train`: build packs of operator predictors from measurements."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from frontier.cli import output
from frontier.cli.options import json_option

if TYPE_CHECKING:
    from frontier.training.build import Built, Progress
    from frontier.training.recipe import PackRecipe

_INSTALLED = "installed"


@click.command(short_help="Train operator predictors from measurements and write packs.")
@click.option(
    "--source",
    "sources",
    multiple=True,
    required=True,
    metavar="NAME=PATH",
    help=f"A source of measurements: aiconfigurator (PATH or {_INSTALLED}), llmservingsim, vidur, profiler.",
)
@click.option("--gpu", "gpus", multiple=True, metavar="GPU", help="Build the packs of this GPU alone.")
@click.option(
    "--recipe",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Which packs to build from which sources; left out, the one that comes with frontier.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("packs"),
    show_default=True,
    help="Folder to write packs to.",
)
@click.option("--optional", is_flag=True, help="Build optional packs too.")
@click.option(
    "--reports",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for accuracy/*.json, by which a build knows what it has done; left out, that of the packs.",
)
@click.option(
    "--report", is_flag=True, help="Write ACCURACY.md, and with plotly ACCURACY.html, beside accuracy/*.json."
)
@click.option("--jobs", type=click.IntRange(1, 64), default=2, show_default=True, help="Trainings at a time.")
@json_option
@click.option("--no-progress", is_flag=True, help="Show no progress bar.")
def train(
    *,
    sources: tuple[str, ...],
    gpus: tuple[str, ...],
    recipe: Path | None,
    out: Path,
    optional: bool,
    reports: Path | None,
    report: bool,
    jobs: int,
    as_json: bool,
    no_progress: bool,
) -> None:
    """Train predictors of operator times and write them as packs, one file per GPU.

    \b
      frontier train --source aiconfigurator=installed --gpu h100 --out packs
      frontier train --source profiler=measurements/ --gpu h100 --out packs --report

    Packs that were built from the same inputs before are left as they are; an interrupted build goes on
    where it stopped. Needs `pip install 'frontier-sim[train]'`.
    """  # noqa: D301 - \b is the character that keeps click from rewrapping
    roots = dict(_source(text) for text in sources)
    from frontier.training.build import Builder  # noqa: PLC0415 - slow to import
    from frontier.training.recipe import default_recipe, load_recipe  # noqa: PLC0415

    recipes = load_recipe(default_recipe() if recipe is None else recipe)
    wanted = _wanted(recipes, gpus, optional=optional)
    out.mkdir(parents=True, exist_ok=True)
    folder = out if reports is None else reports
    builder = Builder(roots, out, folder, jobs=jobs, samples=folder / "samples" if report else None)
    built: list[Built] = []
    with _bar(wanted=not (as_json or no_progress)) as progress:
        for each in wanted:
            found = builder.build(each, progress)
            if found is not None:
                built.append(found)
                if not as_json:
                    click.echo(_line(found))
    if not built:
        raise click.ClickException("none of the packs wanted has measurements in the sources given")
    written = _reports(folder) if report else []
    if as_json:
        packs = [{"path": str(each.path), "fresh": each.fresh, **_figures(each.report)} for each in built]
        output.print_json({"packs": packs, "reports": [str(path) for path in written]})
        return
    for path in written:
        click.echo(f"wrote {path}")


def _source(text: str) -> tuple[str, Path | None]:
    from frontier.training.recipe import SOURCES  # noqa: PLC0415 - slow to import

    name, _, path = text.partition("=")
    if name not in SOURCES or not path:
        allowed = ", ".join(f"{source}=PATH" for source in SOURCES)
        raise click.BadParameter(f"was {text!r}, must be one of {allowed}", param_hint="--source")
    if path == _INSTALLED:
        if name != "aiconfigurator":
            raise click.BadParameter(f"{name} is no package; name a folder", param_hint="--source")
        return name, None
    folder = Path(path)
    if not folder.is_dir():
        raise click.BadParameter(f"the folder {folder} does not exist", param_hint="--source")
    return name, folder


def _wanted(recipes: tuple[PackRecipe, ...], gpus: tuple[str, ...], *, optional: bool) -> list[PackRecipe]:
    known = sorted({recipe.gpu for recipe in recipes})
    for gpu in gpus:
        if gpu not in known:
            raise click.BadParameter(
                f"the recipe has no pack of {gpu!r}, but of {', '.join(known)}", param_hint="--gpu"
            )
    return [
        recipe for recipe in recipes if (optional or not recipe.optional) and (not gpus or recipe.gpu in gpus)
    ]


def _reports(folder: Path) -> list[Path]:
    from frontier.training import plots  # noqa: PLC0415 - slow to import
    from frontier.training.report import load_reports, markdown  # noqa: PLC0415

    reports = load_reports(folder)
    path = folder / "ACCURACY.md"
    path.write_text(markdown(reports))
    if not plots.available():
        click.echo("no ACCURACY.html: plots need `pip install 'frontier-sim[plot]'`", err=True)
        return [path]
    return [path, plots.write_page(reports, folder / "samples", folder / "ACCURACY.html")]


def _figures(report: dict[str, Any]) -> dict[str, Any]:
    return {name: report[name] for name in ("pack", "gpu", "bytes", "compressed_bytes", "families")}


def _line(built: Built) -> str:
    report = built.report
    state = "" if built.fresh else " (was there)"
    size = f"{report['bytes'] / 1e3:,.0f} kB, {report['compressed_bytes'] / 1e3:,.0f} kB compressed"
    return f"{built.path}: {len(report['predictors'])} predictors, {size}{state}"


@contextlib.contextmanager
def _bar(*, wanted: bool) -> Iterator[Progress]:
    """Show a bar on the standard error while the block runs, where that is a terminal."""
    if not wanted or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich import progress as rich_progress  # noqa: PLC0415 - slow to import

    bar = rich_progress.Progress(console=output.console(stderr=True), transient=True)
    with bar:
        task = bar.add_task("reading", total=None)

        def update(name: str, done: int, total: int) -> None:
            bar.update(task, description=name, completed=done, total=total)

        yield update
