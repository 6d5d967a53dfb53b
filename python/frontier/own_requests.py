"""The requests of one cluster, where several clusters or models share those of a scenario."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from frontier.config.models_served import model_names, model_shares
from frontier.trace_columns import trace_columns

if TYPE_CHECKING:
    from frontier.config import Scenario
    from frontier.config.views import ClusterView
    from frontier.lowering import Lowered


def own_requests(whole: Scenario, view: ClusterView, lowered: Lowered) -> tuple[Lowered, float]:
    """Return a lowered cluster with the rows of a trace that are for its model, and its share of requests.

    The share is of a synthetic workload, or of those rows: by weight among the clusters of its role and
    model, and that of its model among all.

    Args:
        whole: the scenario of all clusters.
        view: one of them.
        lowered: its scenario of its own, lowered.
    """
    views = whole.views()
    same = [each for each in views if (each.role, each.served_model) == (view.role, view.served_model)]
    share = view.weight / sum(each.weight for each in same)
    if view.served_model is None:
        return lowered, share
    names = model_names(views)
    number = names.index(view.served_model)
    trace = whole.workload.trace
    if trace is None:
        shares = model_shares(whole.workload, names)["models"]
        return lowered, share * shares[number] / sum(shares)
    from frontier.workloads.transform import take  # noqa: PLC0415 - imports polars

    columns = trace_columns(trace, seed=whole.seed, replication=whole.replication, models=names)
    assert columns.model is not None
    rows = np.flatnonzero(columns.model == number)
    if len(rows) == 0:
        return lowered, share  # nobody asks for it: the steps are those of any request
    if trace.arrivals is not None:
        share *= len(rows) / len(columns)  # of the requests of all models, which arrive as asked
    return replace(lowered, columns=take(columns, rows)), share
