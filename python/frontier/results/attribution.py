"""Where latency goes: mean time per cause, over all measured requests or those around a percentile."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from frontier.errors import ConfigError, Issue, nearest_name, show_value
from frontier.results.columns import Columns, Ints, client_stamps_ns
from frontier.results.metrics import LATENCIES
from frontier.results.statistics import NS_PER_S, exact_sum

Kind = Literal["ttft", "e2el"]
KINDS: tuple[Kind, ...] = ("ttft", "e2el")
RAW_KINDS = {"ttft": "ttft", "e2el": "e2e"}
"""Kind to the prefix of its columns in the raw result, `<prefix>_<cause>_ns`."""
_KIND_NAMES: dict[str, Kind] = {"ttft": "ttft", "e2el": "e2el", "e2e": "e2el"}
BAND = 2.5
"""Points to either side of a percentile that still count as around it."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """Mean latency of some requests, split into causes.

    Attributes:
        kind: "ttft" or "e2el".
        q: percentile (0 to 100) around which the requests lie, None for all.
        num_requests: requests averaged over.
        causes_ns: nanoseconds per cause, summed over the requests; these integers add up to `total_ns`.
        total_ns: latency of the requests, summed, in nanoseconds.
        step_time: how step times were made.
    """

    kind: Kind
    q: float | None
    num_requests: int
    causes_ns: dict[str, int]
    total_ns: int
    step_time: str

    @property
    def mean_s(self) -> float | None:
        """Mean latency in seconds, None without requests."""
        return self.total_ns / self.num_requests / NS_PER_S if self.num_requests else None

    @property
    def causes_s(self) -> dict[str, float]:
        """Mean seconds per cause; empty without requests."""
        if not self.num_requests:
            return {}
        return {cause: total / self.num_requests / NS_PER_S for cause, total in self.causes_ns.items()}

    @property
    def shares(self) -> dict[str, float]:
        """Share of the latency per cause, in [0, 1]; empty if there is no latency."""
        if not self.total_ns:
            return {}
        return {cause: total / self.total_ns for cause, total in self.causes_ns.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "kind": self.kind,
            "q": self.q,
            "num_requests": self.num_requests,
            "mean_s": self.mean_s,
            "causes_s": self.causes_s,
            "step_time": self.step_time,
        }

    def __str__(self) -> str:
        around = "all requests" if self.q is None else f"requests around p{self.q:g}"
        head = f"mean {LATENCIES[self.kind]} of {self.num_requests:,} {around} (step time: {self.step_time})"
        if self.mean_s is None:
            return head.replace("all requests", "requests") + ": none"
        rows = [
            (cause, value, self.shares.get(cause, 0.0)) for cause, value in self.causes_s.items() if value > 0
        ]
        lines = [f"  {cause:<16} {value * 1e3:>12,.3f} ms {share:>7.1%}" for cause, value, share in rows]
        lines.append(f"  {'total':<16} {self.mean_s * 1e3:>12,.3f} ms {1:>7.1%}")
        return "\n".join([head, *lines])

    def _repr_html_(self) -> str:
        from frontier.results.html import attribution_html  # noqa: PLC0415 - only needed in notebooks

        return attribution_html(self)


def attribute(
    columns: Columns, finished: NDArray[np.bool_], kind: str, q: float | None, step_time: str
) -> Attribution:
    """Split the mean latency of the finished requests in `finished` (a mask) into causes.

    Args:
        columns: the run.
        finished: which requests to take; all of them have finished.
        kind: "ttft" or "e2el"; "e2e" is another name of the latter.
        q: take only the requests whose latency ranks within 2.5 percentage points of percentile `q` (at least
            the nearest one).
        step_time: label of the run.

    Raises:
        ConfigError: `kind` or `q` is not one of the above.
    """
    typed = _KIND_NAMES.get(kind) if isinstance(kind, str) else None
    if typed is None:
        raise ConfigError(Issue("kind", kind, f"was {show_value(kind)}", KINDS, nearest_name(kind, KINDS)))
    if q is not None and not (isinstance(q, int | float) and 0 <= q <= 100):
        raise ConfigError(Issue("q", q, f"was {show_value(q)}, must be a percentile from 0 to 100"))
    first, finished_ns = client_stamps_ns(columns.requests)
    until = first if typed == "ttft" else finished_ns
    chosen = np.flatnonzero(finished)
    latency = until[chosen] - columns.requests["arrival_ns"][chosen]
    if q is not None and len(chosen):
        near = _around(latency, q)
        chosen, latency = chosen[near], latency[near]
    causes = {
        cause: exact_sum(columns.requests[f"{RAW_KINDS[typed]}_{cause}_ns"][chosen])
        for cause in columns.causes
    }
    return Attribution(typed, q, len(chosen), causes, exact_sum(latency), step_time)


def _around(latency: Ints, q: float) -> NDArray[np.intp]:
    """Return the indices of the latencies whose rank lies within `BAND` points of percentile `q`."""
    last = len(latency) - 1
    low = math.ceil(max(q - BAND, 0.0) / 100 * last)
    high = math.floor(min(q + BAND, 100.0) / 100 * last)
    if low > high:
        low = high = round(q / 100 * last)
    return np.argsort(latency, kind="stable")[low : high + 1]
