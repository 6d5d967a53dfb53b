"""The bound that a predictor corrects, and its parameters.

    bound = max(compute_s * compute_scale, memory_s * memory_scale, network_s * network_scale) + launch_s

Trees hold their value beyond the range they learned from, so what the bound does there is what the
predictor does. Two bounds compete: that of the data sheet, and one with a launch time and one scale, common
to all three terms, fitted by least absolute log error. Three free scales fit better and extrapolate worse:
within the measured range the trees mend any ratio of compute to memory, beyond it a wrong one decides.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_MAX_ROWS = 4_000
_SMALLEST_STEP = 1.01
SCALES = (1e-6, 1e6)
"""Well within what packs may hold; times that do not depend on size at all would drive a scale to zero."""


@dataclass(frozen=True)
class Costs:
    """Seconds of the four terms of each row's bound, as `operator_features` returns them."""

    compute_s: Floats
    memory_s: Floats
    network_s: Floats
    launch_s: Floats

    def take(self, rows: NDArray[Any]) -> Costs:
        """Return the costs of some rows."""
        return Costs(self.compute_s[rows], self.memory_s[rows], self.network_s[rows], self.launch_s[rows])


@dataclass(frozen=True)
class Bound:
    """Parameters of a bound, as a manifest writes them."""

    launch_s: float
    compute_scale: float = 1.0
    memory_scale: float = 1.0
    network_scale: float = 1.0

    def seconds(self, costs: Costs) -> Floats:
        """Return the bound of each row, in seconds."""
        compute, memory = costs.compute_s * self.compute_scale, costs.memory_s * self.memory_scale
        return np.maximum(np.maximum(compute, memory), costs.network_s * self.network_scale) + self.launch_s


def data_sheet_bound(costs: Costs) -> Bound:
    """Return the bound as the GPU's preset has it; the launch time is that of all rows."""
    return Bound(float(np.median(costs.launch_s)))


def fitted_bound(costs: Costs, seconds: Floats) -> Bound:
    """Return the launch time and the common scale with the least absolute log error.

    Rows weigh by the root of their time, so that long operators, which the scale is about, are not outvoted
    by the many short ones. The search is a coordinate descent over factors, from a fixed start: the same
    rows give the same parameters.
    """
    rows = np.unique(np.linspace(0, len(seconds) - 1, min(_MAX_ROWS, len(seconds))).astype(np.int64))
    sample = costs.take(rows)
    term = np.maximum(np.maximum(sample.compute_s, sample.memory_s), sample.network_s)
    log_time, weight = np.log(seconds[rows]), np.sqrt(seconds[rows])
    weight /= weight.sum()

    def loss(point: tuple[float, float]) -> float:
        return float(weight @ np.abs(log_time - np.log(term * point[1] + point[0])))

    point = (max(0.8 * float(seconds.min()), 1e-7), 1.0)
    best, step = loss(point), 2.0
    while step > _SMALLEST_STEP:
        moved = False
        for axis, factor in itertools.product((0, 1), (step, 1 / step)):
            trial = (point[0] * factor, point[1]) if axis == 0 else (point[0], point[1] * factor)
            if not SCALES[0] <= trial[1] <= SCALES[1]:
                continue
            found = loss(trial)
            if found < best - 1e-9:
                best, point, moved = found, trial, True
        step = step if moved else float(np.sqrt(step))
    return Bound(point[0], point[1], point[1], point[1])
