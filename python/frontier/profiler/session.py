"""One run of a profile: measure the next point, note it, until the budget or the plan is at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from frontier.profiler.device import Device, PointRefusedError
from frontier.profiler.journal import Journal
from frontier.profiler.measure import measure
from frontier.profiler.plan import Limits, Plan, build_plan
from frontier.profiler.points import Point
from frontier.profiler.queue import Queue
from frontier.profiler.settings import Settings, settle
from frontier.profiler.shapes import collect_shapes
from frontier.profiler.store import JOURNAL, Notes, write_profile


@dataclass(frozen=True)
class Progress:
    """How far a profile has come.

    Attributes:
        point: what is measured next.
        done: points measured or refused, of all runs.
        wanted: points of the plan.
        elapsed_s: time of this run.
    """

    point: Point
    done: int
    wanted: int
    elapsed_s: float


def plan_for(settings: Settings, limits: Limits) -> Plan:
    """Return the plan of a profile.

    Raises:
        ConfigError: an unknown model.
    """
    plain = next((dtype for dtype in settings.dtypes if dtype != "fp8"), "bf16")
    return build_plan(
        collect_shapes(settings.models, settings.ranks, plain),
        families=settings.families,
        dtypes=settings.dtypes,
        limits=limits,
        seed=settings.seed,
        grid=settings.grid,
    )


def profile(
    device: Device,
    directory: Path,
    settings: Settings,
    *,
    budget_s: float | None = None,
    notes: Notes | None = None,
    progress: Callable[[Progress], object] | None = None,
) -> dict[str, Any]:
    """Measure into `directory` until the plan is done or `budget_s` seconds have passed; return the manifest.

    A profile that is there already is gone on with, and nothing in it is measured again. The last point may
    run beyond the budget. Whatever ends the run, what was measured is in the journal, and tables and manifest
    are written; Ctrl-C loses the point in flight.

    Raises:
        ConfigError: the directory holds a profile with other settings or something else, or an unknown model.
        FrontierError: the journal is damaged, or another process is profiling into it.
        DeviceLostError: the device failed for good.
    """
    begin = device.now()
    facts = device.facts()
    directory.mkdir(parents=True, exist_ok=True)
    plan = plan_for(settings, settle(directory, settings, facts))
    with Journal(directory / JOURNAL) as journal:
        queue = Queue(plan, journal.record.outcomes.values(), settings.seed)
        try:
            while (point := queue.next()) is not None:
                elapsed = device.now() - begin
                if budget_s is not None and elapsed >= budget_s:
                    break
                if progress is not None:
                    progress(Progress(point, queue.done, plan.target, elapsed))
                _advance(device, settings, journal, queue, point)
        finally:
            manifest = write_profile(
                directory, settings, facts, plan=plan, record=journal.record, notes=notes or Notes()
            )
    return manifest


def _advance(device: Device, settings: Settings, journal: Journal, queue: Queue, point: Point) -> None:
    if journal.record.is_deadly(point.key):
        queue.note(journal.refused(point, "the process died twice while this was in flight"))
        return
    journal.begin(point)
    try:
        measurement = measure(device, point, settings.policy)
    except PointRefusedError as error:
        queue.note(journal.refused(point, error))
    except KeyboardInterrupt:
        journal.interrupted(point)
        raise
    else:
        queue.note(journal.measured(point, measurement))
