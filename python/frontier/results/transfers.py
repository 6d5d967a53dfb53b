"""KV that moved from cluster to cluster: what its hand-overs took (definitions: `docs/metrics.md`)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from frontier.results.columns import NEVER, Columns, Ints
from frontier.results.statistics import NS_PER_S, sample, share
from frontier.results.window import Window

STATISTICS = {"median": 50.0, "p90": 90.0, "p99": 99.0}
"""Percentiles of transfer times, by their names in keys; the mean is given beside them."""
GB = 1e9


def wait_ns(columns: Columns) -> Ints:
    """Return how long KV that was ready waited to move, 0 where it moved before, -1 where it never did."""
    ready, start = columns.transfers["ready_ns"], columns.transfers["start_ns"]
    known = (ready != NEVER) & (start != NEVER)
    return np.where(known, np.maximum(start - ready, 0), NEVER)


def flight_ns(columns: Columns) -> Ints:
    """Return the time from the first byte that left to the last one that was there; -1 where none was."""
    start, end = columns.transfers["start_ns"], columns.transfers["end_ns"]
    return np.where(end != NEVER, end - start, NEVER)


def first_engine(columns: Columns) -> NDArray[np.uint32]:
    """Return the engine that each request was first sent to: the source of its first hand-over, if any."""
    transfers = columns.transfers
    engine = columns.requests["replica"].copy()
    # In reverse, so that the first one of a request is what stays.
    engine[transfers["request"][::-1]] = transfers["source"][::-1]
    return engine


def transfer_metrics(columns: Columns, window: Window) -> dict[str, Any]:
    """Return the metrics of the hand-overs that ended in the window; all are None in a run without any."""
    transfers = columns.transfers
    names = ("kv_transfers", "kv_transfer_gb", "kv_transfer_gb_per_s")
    values: dict[str, Any] = dict.fromkeys(names)
    ended = (transfers["end_ns"] != NEVER) & window.holds(transfers["end_ns"])
    if len(ended):
        moved = int(transfers["bytes"][ended].sum(dtype=np.uint64))
        busy_s = union_ns(transfers["start_ns"][ended], transfers["end_ns"][ended]) / NS_PER_S
        values |= zip(names, (int(ended.sum()), moved / GB, share(moved / GB, busy_s)), strict=True)
    for part, times_ns in (("wait", wait_ns(columns)), ("flight", flight_ns(columns))):
        of = sample(times_ns[ended & (times_ns != NEVER)])
        found = {"mean": of.mean()}
        found |= zip(STATISTICS, of.percentiles(list(STATISTICS.values())), strict=True)
        values |= {
            f"{name}_kv_transfer_{part}_s": None if value is None else value / NS_PER_S
            for name, value in found.items()
        }
    return values


def union_ns(begin: Ints, end: Ints) -> int:
    """Return the time in which at least one of the intervals [begin, end) is open."""
    order = np.argsort(begin, kind="stable")
    begin, end = begin[order], end[order]
    reached = np.maximum.accumulate(end)
    covered = np.append(begin[:1], reached[:-1])
    return int(np.maximum(reached - np.maximum(begin, covered), 0).sum()) if len(begin) else 0
