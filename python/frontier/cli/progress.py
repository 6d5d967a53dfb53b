"""The progress bar of a run: simulated time, requests per second, time left."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from frontier.cli import output

if TYPE_CHECKING:
    from rich import progress as rich_progress

    from frontier.config import Scenario
    from frontier.simulation import Progress


@contextlib.contextmanager
def progress_bar(scenario: Scenario, *, wanted: bool) -> Iterator[Callable[[Progress], None] | None]:
    """Show a bar on the standard error while the block runs; yield what `simulate` is to call.

    Yields None, and shows nothing, where it is not wanted or the standard error is no terminal. The bar is
    drawn only when the simulator reports, about five times a second, so that it costs a run nothing.
    """
    if not wanted or not sys.stderr.isatty():
        yield None
        return
    bar = new_bar(eta=True)
    with bar:
        task = bar.add_task("loading", total=None)
        begin = time.monotonic()

        def update(progress: Progress) -> None:
            done, whole = _share(progress, scenario)
            elapsed = max(time.monotonic() - begin, 1e-3)
            text = describe(progress, elapsed)
            bar.update(task, completed=done, total=whole, description=text, refresh=True)

        bar.refresh()
        yield update


def new_bar(*, eta: bool) -> rich_progress.Progress:
    """Return a bar on the standard error, drawn only when told to; `eta`: it says how much time is left."""
    from rich import progress as rich_progress  # noqa: PLC0415 - slow to import
    from rich.table import Column  # noqa: PLC0415

    left = (rich_progress.TextColumn("ETA"), rich_progress.TimeRemainingColumn(compact=True)) if eta else ()
    return rich_progress.Progress(
        rich_progress.TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True)),
        rich_progress.BarColumn(bar_width=12),
        *left,
        console=output.console(stderr=True),
        auto_refresh=False,
        transient=True,
    )


def describe(progress: Progress, elapsed_s: float) -> str:
    """Return the text of the bar: simulated time, requests done, requests per second of waiting."""
    total = f"/{progress.total:,}" if progress.total is not None else ""
    rate = progress.ended / elapsed_s
    return f"{progress.now_s:,.0f} s simulated, {progress.ended:,}{total} requests, {rate:,.0f} req/s"


def _share(progress: Progress, scenario: Scenario) -> tuple[float, float | None]:
    """Return how much is done, and the whole: requests where their number is known, else simulated time."""
    if progress.total is not None:
        return progress.ended, progress.total
    synthetic = scenario.workload.synthetic
    if synthetic is not None and synthetic.duration is not None:
        whole = synthetic.duration / 1e9
        return min(progress.now_s, whole), whole
    return 0.0, None
