"""Deterministic splits of measurements into rows to train on and rows to test on.

A random split of rows is an easy test: neighbours of every test point stay in training. Splits that hold out
whole shapes, or everything large, say what a predictor does where a simulator needs it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from frontier.errors import ConfigError, Issue
from frontier.training.identity import ATTENTION, COLLECTIVES
from frontier.training.measurements import Array, Measurements


class Split(NamedTuple):
    """Ascending row indices (int64) of the two sides; together they are all rows."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]


def random_by_key(measurements: Measurements, seed: int, share: float = 0.2) -> Split:
    """Hold out about `share` of the distinct inputs, at random; repeats of an input stay together."""
    return _by_group(measurements.key, seed, share)


def held_out_models(measurements: Measurements, seed: int, share: float = 0.2) -> Split:
    """Hold out about `share` of the models (shape sites), at least one, never all.

    Raises:
        ConfigError: there is only one model.
    """
    if len(set(measurements.model)) < 2:
        raise ConfigError(
            Issue(
                "measurements.model", len(set(measurements.model)), "needs two models or more to hold out one"
            )
        )
    return _by_group(measurements.model.astype(str), seed, share)


def extrapolation(measurements: Measurements, reach: float = 4.0) -> dict[str, Split]:
    """Hold out everything above 1 / `reach` of the largest value, one split per axis that can grow.

    Axes: `rows` (tokens), for attention `batch` (requests) and `context` (the longest request), for
    collectives `bytes`. An axis that would leave one side empty is left out.
    """
    if reach <= 1:
        raise ConfigError(Issue("reach", reach, f"was {reach}, must be above 1"))
    splits = {}
    for name, values in _axes(measurements).items():
        large = values > values.max() / reach
        if large.any() and not large.all():
            splits[name] = Split(np.flatnonzero(~large), np.flatnonzero(large))
    return splits


def _axes(measurements: Measurements) -> dict[str, Array]:
    columns = measurements.columns
    if not len(measurements):
        return {}
    if measurements.identity.operator in ATTENTION:
        starts = columns["offsets"][:-1].astype(np.int64)
        return {
            "batch": np.add.reduceat(columns["count"].astype(np.float64), starts),
            "context": np.maximum.reduceat(columns["context"].astype(np.float64), starts),
        }
    name = "bytes" if measurements.identity.operator in COLLECTIVES else "rows"
    return {name: columns[name]}


def _by_group(groups: Array, seed: int, share: float) -> Split:
    if not 0 < share < 1:
        raise ConfigError(Issue("share", share, f"was {share}, must lie between 0 and 1"))
    distinct, member = np.unique(groups, return_inverse=True)
    held = max(1, min(round(share * len(distinct)), len(distinct) - 1)) if len(distinct) > 1 else 0
    chosen = np.zeros(len(distinct), dtype=bool)
    chosen[np.random.default_rng(seed).permutation(len(distinct))[:held]] = True
    test = chosen[member]
    return Split(np.flatnonzero(~test), np.flatnonzero(test))
