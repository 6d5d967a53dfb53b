"""Reading measured tables, and the usual metrics of a run."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from frontier.results import Result

LATENCIES: Final = {"ttft": "ttft_s", "tpot": "tpot_s", "e2e": "e2el_s"}
"""Columns of `Result.requests` by the name that metrics begin with."""
STATISTICS: Final[Mapping[str, float | None]] = {
    "mean": None, "median": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0,
}  # fmt: skip
"""Percentiles by name; None for the mean."""


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file."""
    with path.open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Return the documents of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines() if line]


def statistics_ms(name: str, seconds: ArrayLike) -> dict[str, float]:
    """Return mean and percentiles of times, in milliseconds, as `NAME_STATISTIC_ms`."""
    values = np.asarray(seconds, float) * 1e3
    return {
        f"{name}_{statistic}_ms": float(values.mean() if at is None else np.percentile(values, at))
        for statistic, at in STATISTICS.items()
    }


def latencies_ms(result: Result) -> dict[str, float]:
    """Return mean and percentiles of TTFT, TPOT and E2E over all requests of a run."""
    requests = result.requests
    found: dict[str, float] = {}
    for name, column in LATENCIES.items():
        found |= statistics_ms(name, requests[column].drop_nulls().to_numpy())
    return found
