"""The measurement window: which stretch of the run the metrics describe."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from frontier.errors import ConfigError, Issue, show_value
from frontier.results.columns import Ints
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

    @property
    def stop_ns(self) -> int:
        """The first instant after the window."""
        return self.end_ns + 1 if self.end_ns == self.run_end_ns else self.end_ns

    def holds(self, time_ns: Ints) -> NDArray[np.bool_]:
        """Return whether each time lies in the window; False for what never happened (-1)."""
        inside: NDArray[np.bool_] = (time_ns >= self.start_ns) & (time_ns < self.stop_ns)
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
    # A run without any event has no length, and neither has its window.
    if not issues and start_ns >= end_ns and (start_ns, end_ns, run_end_ns) != (0, 0, 0):
        message = (
            f"the window is empty: from {start_ns / NS_PER_S:g} s to {end_ns / NS_PER_S:g} s of a run of "
            f"{run_s:g} s; it must start before it ends, both within the run, so warm-up and cool-down must "
            f"be less than {run_s:g} s together"
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
