"""95 % confidence intervals from a single run, by batch means.

Latencies of neighbouring requests are alike (they share a queue), so the usual standard error is far too
small. Requests are cut, in order of arrival, into k batches of equal size (to one request); the batch means
are nearly independent when batches are long, and their scatter gives the half width
t(0.975, k - 1) * s / sqrt(k) (Law, Simulation Modeling and Analysis, section 9.5.3). k is 20 with at least 20
requests per batch, else 10 with at least 10; fewer requests give no interval. The batch means are tested for
first-order correlation; if it is significant at 95 % (one-sided), k falls to 10, and if it still is, there is
no interval: the run is too short, or its latencies drift, and any width would be too small.

For p99 the batch percentiles are compared with the percentile of all requests (sectioning: Asmussen and
Glynn, Stochastic Simulation, section III.5), with k = 10 batches of at least 500 requests, so that five
requests of each batch lie beyond its p99.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from frontier.results.statistics import t_975

MEAN_PLANS = ((20, 20), (10, 10))
"""(batches, least requests per batch) for means, tried in turn."""
P99_BATCHES, P99_LEAST = 10, 500


def mean_half_width(total: NDArray[np.float64], weight: NDArray[np.float64] | None = None) -> float | None:
    """Return the half width of the 95 % interval of a mean.

    Args:
        total: one value per request, in order of arrival.
        weight: what each value is the total of (gaps of a request); the mean of a batch is then the sum of
            values over the sum of weights. Default: 1 each.

    Returns:
        The half width in the unit of the mean; None where no honest interval exists.
    """
    for batches, least in MEAN_PLANS:
        if len(total) < batches * least:
            continue
        begins = _begins(len(total), batches)
        sums = np.add.reduceat(total, begins)
        weights = (
            np.diff(np.append(begins, len(total))) if weight is None else np.add.reduceat(weight, begins)
        )
        if not (weights > 0).all():
            return None
        means = sums / weights
        if not _correlated(means):
            return t_975(batches - 1) * float(means.std(ddof=1)) / math.sqrt(batches)
    return None


def p99_half_width(values: NDArray[np.float64]) -> float | None:
    """Return the half width of the 95 % interval of the 99th percentile of `values` (in order of arrival).

    None with fewer than 5,000 requests, or where batches are correlated.
    """
    if len(values) < P99_BATCHES * P99_LEAST:
        return None
    sections = np.split(values, _begins(len(values), P99_BATCHES)[1:])
    tails = np.array([np.percentile(section, 99) for section in sections])
    if _correlated(tails):
        return None
    scatter = float(((tails - np.percentile(values, 99)) ** 2).sum()) / (P99_BATCHES - 1)
    return t_975(P99_BATCHES - 1) * math.sqrt(scatter / P99_BATCHES)


def _begins(length: int, batches: int) -> NDArray[np.intp]:
    return (np.arange(batches) * length // batches).astype(np.intp)


def _correlated(means: NDArray[np.float64]) -> bool:
    """Return whether the lag-1 autocorrelation exceeds what independent batches show in 95 % of cases."""
    centred = means - means.mean()
    scatter = float(centred @ centred)
    # Rounding alone: the batch means are equal.
    if scatter <= len(means) * (1e-12 * float(np.abs(means).max())) ** 2:
        return False
    # The estimate is biased by about -1/k, and its deviation is about 1/sqrt(k).
    return float(centred[1:] @ centred[:-1]) / scatter + 1 / len(means) > 1.645 / math.sqrt(len(means))
