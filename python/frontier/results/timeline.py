"""What the samples of the time line say about a window."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from frontier.results.columns import NONE_U32, TIMELINE_COUNTERS, Columns, Ints
from frontier.results.window import Window


def counters_between(columns: Columns, window: Window) -> dict[str, NDArray[np.float64]]:
    """Return how much each counter of the time line grew within the window, by engine.

    Between two samples of a replica a counter is taken to grow evenly, from 0 at time 0.
    """
    timeline = columns.timeline
    grown = {name: np.zeros(columns.totals["replicas"]) for name in TIMELINE_COUNTERS}
    edges = np.array([window.start_ns, window.end_ns], np.float64)
    for replica, rows in _rows_by_replica(columns):
        time = np.append(0.0, timeline["time_ns"][rows])
        for name in TIMELINE_COUNTERS:
            at = np.interp(edges, time, np.append(0.0, timeline[name][rows]))
            grown[name][replica] = at[1] - at[0]
    return grown


def peak_used_blocks(columns: Columns, window: Window) -> Ints:
    """Return the most blocks that each engine used at once, by the samples whose stretch overlaps the window.

    The stretch of a sample reaches back to the sample before it or, where the replica was idle then, to the
    next arrival of a request that came to the replica. So the figure is exact for a whole run, and reaches at
    most one interval of the time line beyond the edges of another window; with several clusters, a request
    may come to the second one later than it arrives.
    """
    peak = columns.timeline["peak_used_blocks"]
    largest = np.zeros(columns.totals["replicas"], np.int64)
    arrivals, offsets = _arrivals_by_engine(columns)
    for replica, rows in _rows_by_replica(columns):
        begin = _stretch_begins(columns, arrivals[slice(*offsets[replica : replica + 2])], rows)
        overlaps = (begin < window.stop_ns) & (columns.timeline["time_ns"][rows] > window.start_ns)
        largest[replica] = peak[rows][overlaps].max(initial=0)
    return largest


def _rows_by_replica(columns: Columns) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield each replica with its samples, in order of time."""
    replica = columns.timeline["replica"]
    if not len(replica):
        return
    order = np.argsort(replica, kind="stable")
    replicas, begins = np.unique(replica[order], return_index=True)
    for number, rows in zip(replicas, np.split(order, begins[1:]), strict=True):
        yield int(number), rows


def _arrivals_by_engine(columns: Columns) -> tuple[Ints, Ints]:
    """Return when requests arrived that came to an engine, be it for a part of their work, in order of time.

    Those of engine i are entries offsets[i] .. offsets[i + 1] of the first array.
    """
    requests, transfers = columns.requests, columns.transfers
    request = np.concatenate(
        [np.arange(len(requests["replica"])), transfers["request"], transfers["request"]]
    )
    engine = np.concatenate([requests["replica"], transfers["source"], transfers["destination"]])
    known = engine != NONE_U32
    engine, arrival = engine[known], requests["arrival_ns"][request[known]]
    order = np.lexsort((arrival, engine))
    return arrival[order], np.searchsorted(engine[order], np.arange(columns.totals["replicas"] + 1))


def _stretch_begins(columns: Columns, arrivals: Ints, rows: NDArray[np.intp]) -> Ints:
    """Return for each sample of a replica when the stretch that it describes began."""
    timeline = columns.timeline
    begin: Ints = np.append(0, timeline["time_ns"][rows][:-1])
    held = timeline["used_blocks"][rows] + timeline["num_running"][rows] + timeline["num_waiting"][rows]
    idle = np.append(True, held[:-1] == 0)
    arrivals = np.append(arrivals, np.iinfo(np.int64).max)
    return np.where(idle, arrivals[np.searchsorted(arrivals, begin)], begin)
