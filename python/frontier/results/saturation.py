"""A verdict on whether the cluster keeps up with the load.

In a saturated cluster the queue grows for as long as requests arrive, and so do the latencies: they then say
how long the run was, not how fast the cluster is. The rule, applied to the part of the window in which
requests arrive:

* *too short to tell* if fewer than 50 requests arrive, or if that part is shorter than three times the median
  time from a request's first step to its completion (the system is still filling up);
* the number of requests waiting for their first step is averaged over ten equal segments and a line is fitted
  to the ten means; the growth of the queue is the slope times the length;
* *saturated* if the slope is above 0 (one-sided t-test at 95 %, 8 degrees of freedom) and the growth is at
  least max(10, 2 sqrt(2 A)), A being the number of arrivals: two standard deviations of what Poisson arrivals
  served at just their own rate would do by chance;
* *too short to tell* if the slope is above 0 by the test and the growth is at least 10, but not that much;
* *stable* otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from frontier.results.columns import FINISHED, NEVER, REJECTED, Columns, left_ns
from frontier.results.rates import mean_count
from frontier.results.statistics import NS_PER_S, T_95_DF8
from frontier.results.window import Window

STABLE, SATURATED, UNCLEAR = "stable", "saturated", "too short to tell"
SEGMENTS = 10
MIN_ARRIVALS = 50
MIN_SERVICE_TIMES = 3.0
MIN_GROWTH = 10.0


@dataclass(frozen=True, slots=True)
class Saturation:
    """The verdict ("stable", "saturated" or "too short to tell") and the reason for it in words."""

    verdict: str
    reason: str


def judge_saturation(columns: Columns, window: Window) -> Saturation:
    """Return the verdict for the part of `window` in which requests arrive."""
    requests = columns.requests
    arrival_ns = requests["arrival_ns"]
    issued = window.holds(arrival_ns)
    arrived = issued & (requests["status"] != REJECTED)
    arrivals = int(arrived.sum())
    if arrivals < MIN_ARRIVALS:
        return Saturation(UNCLEAR, _too_few(arrivals, int(issued.sum()) - arrivals))
    # From the first arrival, not from the start of the window: a trace may begin late.
    start_ns, stop_ns = int(arrival_ns[arrived].min()), int(arrival_ns[arrived].max())
    length_s = (stop_ns - start_ns) / NS_PER_S
    if stop_ns <= start_ns:
        return Saturation(
            UNCLEAR, f"all {arrivals} requests arrived at once: there is no rate to keep up with"
        )
    served = arrived & (requests["status"] == FINISHED)
    if not served.any():
        return Saturation(UNCLEAR, f"none of the {arrivals} requests that arrived in the window finished")
    service_s = (
        float(np.median(requests["finished_ns"][served] - requests["scheduled_ns"][served])) / NS_PER_S
    )
    if length_s < MIN_SERVICE_TIMES * service_s:
        reason = (
            f"requests arrived for {length_s:.3g} s, less than {MIN_SERVICE_TIMES:g} times the median of "
            f"{service_s:.3g} s that a request takes from its first step to its completion"
        )
        return Saturation(UNCLEAR, reason)

    waiting = _mean_waiting(columns, window.run_end_ns, start_ns, stop_ns)
    slope, rising = _slope_test(waiting)
    growth = slope * SEGMENTS
    threshold = max(MIN_GROWTH, 2.0 * math.sqrt(2.0 * arrivals))
    finished = requests["finished_ns"]
    completions = int(((finished >= start_ns) & (finished <= stop_ns)).sum())
    reason = (
        f"{arrivals:,} arrivals and {completions:,} completions in {length_s:,.4g} s; the number waiting "
        f"changed by {round(growth, 1) + 0.0:+,.1f} (fitted line), "
        f"at most {threshold:,.0f} is taken for chance"
    )
    if rising and growth >= threshold:
        return Saturation(SATURATED, reason)
    if rising and growth >= MIN_GROWTH:
        return Saturation(UNCLEAR, reason + ", but the rise is steady: run longer")
    return Saturation(STABLE, reason)


def _too_few(arrivals: int, rejected: int) -> str:
    """Say how many requests arrived; both numbers are those of the window."""
    if rejected == 1 and not arrivals:
        return "the only request that arrived in the window was rejected"
    if rejected and not arrivals:
        return f"all {rejected:,} requests that arrived in the window were rejected"
    arrived = f"{arrivals} request{'s' if arrivals != 1 else ''} arrived in the window"
    left_out = f", not counting {rejected:,} rejected" if rejected else ""
    return f"{arrived}{left_out}; {MIN_ARRIVALS} are needed"


def _mean_waiting(columns: Columns, run_end_ns: int, start_ns: int, stop_ns: int) -> NDArray[np.float64]:
    """Return the mean number of requests waiting for their first step, in each of the segments."""
    requests = columns.requests
    queued = requests["status"] != REJECTED
    begin, first = requests["arrival_ns"][queued], requests["scheduled_ns"][queued]
    left = left_ns(requests)[queued]
    end = np.where(first != NEVER, first, np.where(left != NEVER, left, run_end_ns))
    edges = np.linspace(start_ns, stop_ns, SEGMENTS + 1).astype(np.int64)
    means = [mean_count(begin, end, int(low), int(high)) for low, high in pairwise(edges)]
    return np.array(means)


def _slope_test(means: NDArray[np.float64]) -> tuple[float, bool]:
    """Return the least-squares slope per segment, and whether it is above 0 at 95 % (one-sided)."""
    position = np.arange(len(means)) - (len(means) - 1) / 2
    spread = float(position @ position)
    slope = float(position @ means) / spread
    residual = means - means.mean() - slope * position
    error = math.sqrt(float(residual @ residual) / (len(means) - 2) / spread)
    return slope, slope > T_95_DF8 * error
