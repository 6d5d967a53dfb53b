"""`frontier profile`: measure the operators of models on this machine's device."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from frontier.cli import output
from frontier.cli.options import json_option
from frontier.cli.progress import new_bar

if TYPE_CHECKING:
    from frontier.profiler.device import Device
    from frontier.profiler.session import Progress
    from frontier.profiler.settings import Settings

# As in frontier.profiler.grid and .settings, whose import takes numpy; a test compares them.
FAMILIES = ("launch", "copy", "gemm", "decode", "prefill", "moe", "elementwise", "mixed")
DTYPES = ("bf16", "fp16", "fp8")


@click.command(short_help="Measure operators on this machine, to train predictors.")
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where the profile is kept; one that is there is gone on with.",
)
@click.option(
    "--families",
    metavar="NAMES",
    default=",".join(FAMILIES),
    help=f"Families of operators, separated by commas: {', '.join(FAMILIES)}; all by default.",
)
@click.option(
    "--models", metavar="NAMES", help="Models whose shapes are measured, presets or files; seven by default."
)
@click.option("--tp", "ranks", metavar="SIZES", default="1,2,4,8", help="Tensor-parallel sizes to cut them.")
@click.option(
    "--dtype", "dtypes", metavar="NAMES", default="bf16", help=f"Types of arithmetic: {', '.join(DTYPES)}."
)
@click.option(
    "--budget", metavar="TIME", help="Stop after this time, as in 10min; without it, when all is done."
)
@click.option("--device", type=click.Choice(["auto", "cuda", "cpu"]), default="auto", show_default=True)
@click.option(
    "--measurement",
    type=click.Choice(["cuda_graph", "event"]),
    default="cuda_graph",
    help="Replay graphs (kernels alone), or time eager launches by events.",
)
@click.option("--gpu", metavar="NAME", help="Name of the GPU, as `frontier gpus` lists them.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Seed of loads and lengths.")
@click.option(
    "--max-launch", metavar="TIME", default="1s", show_default=True, help="Longest launch to measure."
)
@click.option("--licence", default="unspecified", help="Licence that you give the measurements.")
@click.option("--date", metavar="DATE", help="Date for the manifest (ISO 8601); now by default.")
@json_option
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
@click.option("--no-progress", is_flag=True, help="Show no progress bar.")
def profile(
    *,
    out: Path,
    families: str,
    models: str | None,
    ranks: str,
    dtypes: str,
    budget: str | None,
    device: str,
    measurement: str,
    gpu: str | None,
    seed: int,
    max_launch: str,
    licence: str,
    date: str | None,
    as_json: bool,
    quiet: bool,
    no_progress: bool,
) -> None:
    """Measure operators on this machine's GPU (or processor) with PyTorch.

    \b
      frontier profile --out profiles/mine --budget 10min
      frontier profile --out profiles/mine --families gemm --models qwen3-8b

    All families are measured side by side, coarse to fine, then where a predictor
    would be least sure, so that a short budget gives a coarse profile of everything.
    Stop it when you like (Ctrl-C): the same command goes on where it stopped.
    """  # noqa: D301 - \b is the character that keeps click from rewrapping
    budget_s = None if budget is None else _seconds("--budget", budget)
    launch_s = _seconds("--max-launch", max_launch)
    sizes = _sizes(ranks)
    _check_date(date)

    from frontier.profiler.session import profile as run  # noqa: PLC0415 - slow to import
    from frontier.profiler.settings import Settings  # noqa: PLC0415
    from frontier.profiler.shapes import DEFAULT_MODELS  # noqa: PLC0415
    from frontier.profiler.store import Notes  # noqa: PLC0415

    def settings_for(name: str) -> Settings:
        return Settings(
            gpu=name,
            families=_names("--families", families),
            models=DEFAULT_MODELS if models is None else _names("--models", models),
            ranks=sizes,
            dtypes=_names("--dtype", dtypes),
            seed=seed,
            launch_s=launch_s,
        )

    settings_for(gpu or "unnamed")  # its errors before a device is opened, which takes seconds
    opened = open_device(device, measurement)
    settings = settings_for(gpu or _gpu_name(opened.facts().name, opened.facts().kind))
    notes = Notes(date=date, licence=licence)
    with progress_bar(budget_s, wanted=not (as_json or quiet or no_progress)) as update:
        try:
            manifest = run(opened, out, settings, budget_s=budget_s, notes=notes, progress=update)
        except KeyboardInterrupt:
            click.echo(f"stopped; what was measured is in {out}, and the same command goes on", err=True)
            raise
    if as_json:
        output.print_json(manifest)
    elif not quiet:
        print_profile(out, manifest)


def open_device(kind: str, measurement: str) -> Device:
    """Return PyTorch's device; tests put another in its place."""
    from frontier.profiler.torch_device import open_device as open_torch  # noqa: PLC0415 - imports torch

    return open_torch(kind, measurement="event" if measurement == "event" else "cuda_graph")


def print_profile(out: Path, manifest: dict[str, Any]) -> None:
    """Print what a profile holds."""
    title = f"{manifest['device_name']} ({manifest['gpu']}), {manifest['backend']} {manifest['version']}"
    output.print_text(f"{title}, measured by {manifest['measurement']}")
    click.echo()
    rows = [
        (
            facts["operator"],
            f"{facts['rows']:,}",
            f"{facts['median_spread']:.1%}",
            ", ".join(facts["kernels"]),
        )
        for facts in manifest["files"].values()
    ]
    width = max((len(row[3]) for row in rows), default=0)
    listed = [(*row[:3], row[3].ljust(width)) for row in rows]
    output.print_table(("operator", "points", "spread", "kernels".ljust(width)), listed)
    click.echo()
    parts = manifest["progress"].items()
    done = [f"{name} {part['done']:,} of {part['wanted']:,}" for name, part in parts if part["wanted"]]
    output.print_text(f"done: {', '.join(done)}")
    output.print_text(f"kept in {out}; what was left out and why: skipped.parquet")


@contextlib.contextmanager
def progress_bar(budget_s: float | None, *, wanted: bool) -> Iterator[Callable[[Progress], None] | None]:
    """Show a bar on the standard error while the block runs; None where it is not wanted or no terminal."""
    if not wanted or not sys.stderr.isatty():
        yield None
        return
    bar = new_bar(eta=False)
    with bar:
        task = bar.add_task("preparing", total=None)

        def update(progress: Progress) -> None:
            # What ends first, the budget or the plan, is what the bar shows.
            shares = [progress.done / max(1, progress.wanted)]
            if budget_s:
                shares.append(min(1.0, progress.elapsed_s / budget_s))
            text = f"{progress.done:,}/{progress.wanted:,} points, {progress.elapsed_s:,.0f} s, "
            description = text + progress.point.operator
            bar.update(task, completed=max(shares), total=1.0, description=description, refresh=True)

        bar.refresh()
        yield update


def _gpu_name(device_name: str, kind: str) -> str:
    """Return the preset that a device is, else its name in the form of presets (`nvidia-l4`)."""
    if kind == "cpu":
        return "cpu"
    from frontier.hardware import gpu_names, load_gpu  # noqa: PLC0415 - slow to import

    for name in gpu_names():
        if load_gpu(name).device_name == device_name:
            return name
    words = "".join(letter if letter.isalnum() else " " for letter in device_name.casefold()).split()
    known = [name for name in gpu_names() if set(name.split("-")) <= set(words)]
    return max(known, key=len) if known else "-".join(words)


def _names(option: str, text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        raise click.BadParameter("names nothing", param_hint=option)
    return names


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(dict.fromkeys(int(name) for name in _names("--tp", text)))
    except ValueError:
        raise click.BadParameter(
            f"was {text!r}, must be whole numbers as in 1,2,4", param_hint="--tp"
        ) from None
    if min(sizes) < 1:
        raise click.BadParameter(f"was {text!r}, must be positive", param_hint="--tp")
    return sizes


def _seconds(option: str, text: str) -> float:
    from frontier.units import parse_duration_ns  # noqa: PLC0415 - slow to import

    try:
        nanoseconds = parse_duration_ns(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=option) from None
    if nanoseconds == 0:
        raise click.BadParameter("must be longer than 0", param_hint=option)
    return nanoseconds / 1e9


def _check_date(text: str | None) -> None:
    if text is None:
        return
    import datetime  # noqa: PLC0415 - as the rest

    try:
        datetime.datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(
            f"was {text!r}, must be ISO 8601 as in 2026-01-31", param_hint="--date"
        ) from None
