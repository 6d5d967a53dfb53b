"""The figures that are given for each model of a run that serves several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frontier.errors import InvariantError
from frontier.results.columns import NONE_U32, Columns
from frontier.results.facts import RunFacts
from frontier.results.metrics import LATENCIES, STATISTICS

NAMES = (
    "arrived",
    "completed",
    "measured_requests",
    "total_input_tokens",
    "total_output_tokens",
    "request_throughput",
    "output_throughput",
    "total_token_throughput",
    *(f"{statistic}_{key}_s" for key in LATENCIES for statistic in STATISTICS),
    *(f"mean_{key}_ci95_s" for key in LATENCIES),
    "request_goodput",
    "slo_attainment",
)
"""What is given by model, each as the metric of this name is given of all requests."""


def by_model(
    columns: Columns,
    facts: RunFacts,
    measured: Callable[[NDArray[np.bool_]], dict[str, Any]],
) -> dict[str, dict[str, Any]] | None:
    """Return the metrics by model, None where all clusters serve one.

    Args:
        columns: the run.
        facts: which models there are.
        measured: returns the metrics of some requests, given as boolean mask.
    """
    if not facts.models:
        return None
    found = {}
    for number, name in enumerate(facts.models):
        values = measured(columns.requests["model"] == number)
        found[name] = {each: values[each] for each in NAMES}
    return found


def check_models(columns: Columns, facts: RunFacts) -> None:
    """Check that every request asked for a model that is served, and that a cluster of it served it.

    Raises:
        InvariantError: naming the first request that did not.
    """
    model, engine = columns.requests["model"].astype(np.int64), columns.requests["replica"]
    names = facts.models
    unknown = np.flatnonzero(model >= max(1, len(names)))
    if len(unknown):
        row = int(unknown[0])
        raise InvariantError(f"request {row} asked for model {model[row]} of {max(1, len(names))}")
    if not names:
        return
    served = np.array([names.index(each.model) if each.model in names else -1 for each in facts.clusters])
    routed = engine != NONE_U32
    at = columns.cluster_of_engine[np.where(routed, engine, 0)]
    wrong = np.flatnonzero(routed & (served[at] != model))
    if len(wrong):
        row = int(wrong[0])
        where = facts.clusters[int(at[row])].name
        raise InvariantError(f"request {row} asked for {names[model[row]]} and was served by {where}")
