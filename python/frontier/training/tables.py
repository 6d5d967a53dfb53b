"""Collectives: tables of time over bytes, one for each number of ranks and nodes.

Trees lose to log-log interpolation here: sizes are one-dimensional, and protocols change at sizes that a
table keeps and trees smooth.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from frontier.training import holdout
from frontier.training.holdout import Figures
from frontier.training.measurements import Measurements
from frontier.training.predictor import NO_BOUND, Tensors, Trained, identity_entry, provenance, repeats

Floats = NDArray[np.float64]

MIN_SIZES = 4


def tables(measurements: Measurements) -> list[Trained]:
    """Return one table for each (ranks, nodes) of a collective that has `MIN_SIZES` sizes or more."""
    columns = measurements.columns
    found = []
    for ranks, nodes in sorted(set(zip(columns["ranks"].tolist(), columns["nodes"].tolist(), strict=True))):
        part = measurements.take((columns["ranks"] == ranks) & (columns["nodes"] == nodes))
        sizes, times = _medians(part.columns["bytes"], part.seconds)
        if len(sizes) >= MIN_SIZES:
            found.append(_table(part, sizes, times, {"ranks": int(ranks), "nodes": int(nodes)}))
    return found


def _medians(sizes: Floats, seconds: Floats) -> tuple[Floats, Floats]:
    """Return the distinct sizes, as 32-bit values, and the median time of each."""
    distinct, member = np.unique(sizes.astype(np.float32), return_inverse=True)
    times = [float(np.median(seconds[member == index])) for index in range(len(distinct))]
    return distinct.astype(np.float64), np.array(times)


def interpolated(known: Floats, times: Floats, wanted: Floats) -> Floats:
    """Return times by straight lines in log-log; inside the range of `known` alone."""
    return np.asarray(np.exp(np.interp(np.log(wanted), np.log(known), np.log(times))))


def _left_out(sizes: Floats, times: Floats) -> tuple[Floats, Floats]:
    """Return what the neighbours say of each inner size, and its time."""
    inner = range(1, len(sizes) - 1)
    predicted = [
        float(interpolated(sizes[[i - 1, i + 1]], times[[i - 1, i + 1]], sizes[i : i + 1])[0]) for i in inner
    ]
    return np.array(predicted), times[1:-1]


def _table(part: Measurements, sizes: Floats, times: Floats, place: dict[str, int]) -> Trained:
    predicted, measured = _left_out(sizes, times)
    splits: dict[str, Figures] = {"left_out": holdout.figures(predicted, measured)}
    if len(sizes) >= 8:
        inside = sizes[1:-1:2]
        sparse = interpolated(np.append(sizes[::2], sizes[-1]), np.append(times[::2], times[-1]), inside)
        splits["every_second"] = holdout.figures(sparse, times[1:-1:2])
    entry = {
        **identity_entry(part.identity, place),
        "form": "table",
        "features": ["bytes"],
        "ranges": [[float(sizes[0]), float(sizes[-1])]],
        "bound": NO_BOUND,
        "cold": None,
        "calibration": 1.0,
        "base_score": 0.0,
        "residual_quantiles": holdout.residual_quantiles(predicted, measured),
        "shapes": "",
        "accuracy": {"splits": splits, "repeats": repeats(part), "bound": "none"},
        **provenance(part),
    }
    tensors: Tensors = {
        "x": sizes.astype(np.float32),
        "seconds": times.astype(np.float32),
        "static_shapes": np.empty(0, np.uint64),
    }
    errors = np.abs(predicted / measured - 1)
    return Trained(part.identity, entry, tensors, errors, splits, repeat_errors=part.repeat_errors())
