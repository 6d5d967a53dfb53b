"""Tokens and requests per second of the window, counted as `vllm bench serve` counts them.

vLLM (`vllm/benchmarks/serve.py`, `calculate_metrics`) cuts the time from the start of its first successful
request into whole seconds, adds each token to the second in which it came, and each successful request to
every second from that of its start to that of its end, both included.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frontier.results.columns import FINISHED, NEVER, REJECTED, Columns, Ints, left_ns
from frontier.results.tokens import TokenRuns
from frontier.results.window import Window

SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Seconds:
    """The window cut into seconds, and the requests that finish, as far as they lie in the window.

    Attributes:
        window: the window.
        origin_ns: where second 0 begins: at the first moment of the window at which there is a request that
            finishes; at the start of the window if there never is one.
        begin_ns: arrival of each request that finishes and touches the window, or the start of the window.
        end_ns: its end, or the last instant of the window.
    """

    window: Window
    origin_ns: int
    begin_ns: Ints
    end_ns: Ints

    @classmethod
    def of(cls, columns: Columns, window: Window) -> Seconds:
        """Cut `window` into seconds."""
        requests = columns.requests
        begin, end = requests["arrival_ns"], requests["finished_ns"]
        touches = (requests["status"] == FINISHED) & (begin < window.stop_ns) & (end >= window.start_ns)
        begin = np.maximum(begin[touches], window.start_ns)
        origin = int(begin.min()) if len(begin) else window.start_ns
        return cls(window, origin, begin, np.minimum(end[touches], window.stop_ns - 1))

    def max_concurrent_requests(self) -> int:
        """Return the most requests that touch the same second."""
        first = (self.begin_ns - self.origin_ns) // SECOND_NS
        last = (self.end_ns - self.origin_ns) // SECOND_NS
        return peak_count(first, last + 1)

    def max_output_tokens(self, runs: TokenRuns) -> float:
        """Return the most tokens emitted in the same second, by any request."""
        start_ns, stop_ns = self.window.start_ns, self.window.stop_ns
        low, high = (start_ns - self.origin_ns) // SECOND_NS, (stop_ns - 1 - self.origin_ns) // SECOND_NS
        if high - low <= len(runs.end_ns):
            second = np.arange(low, high + 1, dtype=np.int64)
        else:  # a long and idle run: only the seconds that occur
            inside = runs.end_ns[self.window.holds(runs.end_ns)]
            second = np.unique((inside - self.origin_ns) // SECOND_NS)
        begin = np.maximum(self.origin_ns + second * SECOND_NS, start_ns)
        end = np.minimum(self.origin_ns + second * SECOND_NS, stop_ns - SECOND_NS) + SECOND_NS
        tokens = runs.tokens_until(end) - runs.tokens_until(begin)
        return float(tokens.max(initial=0))


def peak_concurrent_requests(columns: Columns, window: Window) -> int:
    """Return the most requests in the system (arrived, not left, not rejected) at one instant of the window.

    A request that leaves at the very instant at which another arrives has left before.
    """
    begin, end = _stays(columns, window)
    inside = (begin < window.stop_ns) & (end > window.start_ns)
    return peak_count(np.maximum(begin[inside], window.start_ns), end[inside])


def mean_concurrent_requests(columns: Columns, window: Window) -> float | None:
    """Return the mean number of requests in the system over the window, None if the window has no length."""
    if window.end_ns == window.start_ns:
        return None
    return mean_count(*_stays(columns, window), window.start_ns, window.end_ns)


def mean_count(begin_ns: Ints, end_ns: Ints, start_ns: int, stop_ns: int) -> float:
    """Return how many intervals [begin, end) are open on average over [start_ns, stop_ns), 0 if empty."""
    if stop_ns <= start_ns:
        return 0.0
    open_ns = np.clip(end_ns, start_ns, stop_ns) - np.clip(begin_ns, start_ns, stop_ns)
    return float(open_ns.sum(dtype=np.float64)) / (stop_ns - start_ns)


def peak_count(begin: NDArray[np.int64], end: NDArray[np.int64]) -> int:
    """Return the largest number of intervals [begin, end) open at once."""
    begin, end = np.sort(begin), np.sort(end)
    # The number open can only be largest where an interval begins: those begun by then less those ended.
    level = np.arange(1, len(begin) + 1) - np.searchsorted(end, begin, side="right")
    return int(level.max(initial=0))


def _stays(columns: Columns, window: Window) -> tuple[Ints, Ints]:
    """Return when each request that was not rejected came and left."""
    requests = columns.requests
    present = requests["status"] != REJECTED
    begin, end = requests["arrival_ns"][present], left_ns(requests)[present]
    # What never finished stays to the end of the run, and is still there at its last instant.
    return begin, np.where(end == NEVER, window.run_end_ns + 1, end)
