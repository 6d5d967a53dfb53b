"""The measurement window: which stretch of the run the metrics describe."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frontier.errors import ConfigError, Issue, show_value
from frontier.results.columns import TIMELINE_COUNTERS, Columns, Ints
from frontier.results.statistics import NS_PER_S
from frontier.units import parse_duration_ns, parse_share


@dataclass(frozen=True, slots=True)
class Window:
    """The stretch [start_ns, end_ns) of a run; one that reaches the end of the run includes its last instant.

    (The last completion happens at the very end; without it no run would ever finish all its requests.)
    """

    start_ns: int
    end_ns: int
    run_end_ns: int

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return (self.end_ns - self.start_ns) / NS_PER_S

    def holds(self, time_ns: Ints) -> NDArray[np.bool_]:
        """Return whether each time lies in the window; False for what never happened (-1)."""
        before_end = time_ns <= self.end_ns if self.end_ns == self.run_end_ns else time_ns < self.end_ns
        inside: NDArray[np.bool_] = (time_ns >= self.start_ns) & before_end
        return inside


def resolve_window(
    run_end_ns: int,
    *,
    warmup: float | str = 0.0,
    cooldown: float | str = 0.0,
    start: float | None = None,
    end: float | None = None,
) -> Window:
    """Return the window that the arguments describe.

    Args:
        run_end_ns: end of the run.
        warmup: what to leave out at the start: seconds, a duration such as "30s", or a share of the run such
            as "10%".
        cooldown: the same at the end.
        start: where the window starts, in seconds; replaces `warmup`.
        end: where it ends, in seconds, at most the end of the run; replaces `cooldown`.

    Raises:
        ConfigError: an argument cannot be read, lies outside the run, or nothing is left.
    """
    run_s = run_end_ns / NS_PER_S
    issues: list[Issue] = []
    start_ns = (
        _cut_ns("warmup", warmup, run_end_ns, issues) if start is None else _edge_ns("start", start, issues)
    )
    end_ns = run_end_ns
    if end is None:
        end_ns -= _cut_ns("cooldown", cooldown, run_end_ns, issues)
    else:
        end_ns = _edge_ns("end", end, issues)
        if end_ns > run_end_ns and not issues:
            message = (
                f"was {end:g} s, but the run ended at {run_s:.9g} s; leave it out to measure up to the end"
            )
            issues.append(Issue("end", end, message))
    if not issues and run_end_ns > 0 and start_ns >= end_ns:
        message = (
            f"the window is empty: from {start_ns / NS_PER_S:g} s to {end_ns / NS_PER_S:g} s of a run of "
            f"{run_s:g} s; shorten the warm-up or the cool-down"
        )
        issues.append(Issue("", (start_ns, end_ns), message))
    if issues:
        raise ConfigError(issues, source="measurement window")
    return Window(start_ns, end_ns, run_end_ns)


def _cut_ns(name: str, value: float | str, run_end_ns: int, issues: list[Issue]) -> int:
    message = f"was {show_value(value)}, must be 0 or more and leave something of the run"
    try:
        if isinstance(value, str) and value.rstrip().endswith("%"):
            share = parse_share(value)
            if share < 1.0:
                return round(run_end_ns * share)
        elif isinstance(value, str):
            return parse_duration_ns(value)
        elif not isinstance(value, bool) and math.isfinite(value) and value >= 0.0:
            return round(value * NS_PER_S)
    except ValueError as error:
        message = str(error)
    allowed = ("seconds as a number", "a duration such as '30s'", "a share of the run such as '10%'")
    issues.append(Issue(name, value, message, allowed))
    return 0


def _edge_ns(name: str, value: float, issues: list[Issue]) -> int:
    if isinstance(value, int | float) and math.isfinite(value) and value >= 0.0:
        return round(value * NS_PER_S)
    issues.append(Issue(name, value, f"was {show_value(value)}, must be seconds since the start of the run"))
    return 0


def mean_count(begin_ns: Ints, end_ns: Ints, start_ns: int, stop_ns: int) -> float:
    """Return how many intervals [begin, end) are open on average over [start_ns, stop_ns), 0 if empty."""
    if stop_ns <= start_ns:
        return 0.0
    open_ns = np.clip(end_ns, start_ns, stop_ns) - np.clip(begin_ns, start_ns, stop_ns)
    return float(open_ns.sum(dtype=np.float64)) / (stop_ns - start_ns)


def peak_count(begin_ns: Ints, end_ns: Ints, window: Window) -> int:
    """Return the largest number of intervals [begin, end) open at once within the window.

    At equal times an end counts before a beginning, as the intervals are half open.
    """
    times = np.concatenate([begin_ns, end_ns])
    change = np.concatenate([np.ones(len(begin_ns), np.int64), np.full(len(end_ns), -1, np.int64)])
    order = np.lexsort((change, times))
    times, level = times[order], np.cumsum(change[order])
    stop = (
        len(times)
        if window.end_ns == window.run_end_ns
        else int(np.searchsorted(times, window.end_ns, side="left"))
    )
    # The last event up to the start of the window gives the level there; before the first, none is open.
    first = int(np.searchsorted(times, window.start_ns, side="right")) - 1
    return int(level[max(first, 0) : stop].max(initial=0))


def counters_between(columns: Columns, window: Window) -> dict[str, float]:
    """Return how much each counter of the time line grew within the window, summed over replicas.

    Between two samples of a replica a counter is taken to grow evenly, from 0 at time 0.
    """
    timeline = columns.timeline
    grown = dict.fromkeys(TIMELINE_COUNTERS, 0.0)
    order = np.argsort(timeline["replica"], kind="stable")
    replicas, begins = np.unique(timeline["replica"][order], return_index=True)
    stops = np.append(begins[1:], len(order))
    edges = np.array([window.start_ns, window.end_ns], np.float64)
    for _, begin, stop in zip(replicas, begins, stops, strict=True):
        rows = order[begin:stop]
        time = np.append(0.0, timeline["time_ns"][rows])
        for name in TIMELINE_COUNTERS:
            at = np.interp(edges, time, np.append(0.0, timeline[name][rows]))
            grown[name] += float(at[1] - at[0])
    return grown
