"""How wrong a predictor is on rows it has not seen."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frontier.training.bounds import Bound, Costs, data_sheet_bound, fitted_bound
from frontier.training.fit import Fit, fit_ratio
from frontier.training.identity import EXCHANGES
from frontier.training.inputs import Inputs
from frontier.training.measurements import Measurements
from frontier.training.settings import SEED, Settings
from frontier.training.splits import Split, extrapolation, held_out_models, random_by_key

Floats = NDArray[np.float64]
Figures = dict[str, float | int]
BoundOf = Callable[[Costs, Floats], Bound]

QUANTILES = (
    0.005,
    0.01,
    0.02,
    0.05,
    *(round(0.1 + 0.06666667 * i, 3) for i in range(13)),
    0.95,
    0.98,
    0.99,
    0.995,
)
MIN_TEST_ROWS = 20
_MIN_GAIN = 0.9
"""The data sheet's bound wins if its median error is below this share of the fitted one's."""


def figures(predicted: Floats, measured: Floats) -> Figures:
    """Return the accuracy of predictions: shares and errors, not percentages.

    `median`, `p95` of |predicted / measured - 1|; `within_6`, `within_10`: shares of rows; `wape`: sum of
    errors over sum of times; `bias`: median of predicted / measured, minus 1; `rows`.
    """
    error = np.abs(predicted / measured - 1)
    return {
        "rows": len(measured),
        "median": _short(np.median(error)),
        "p95": _short(np.quantile(error, 0.95)),
        "within_6": _short((error <= 0.06).mean()),
        "within_10": _short((error <= 0.10).mean()),
        "wape": _short(np.abs(predicted - measured).sum() / measured.sum()),
        "bias": _short(np.median(predicted / measured) - 1),
    }


def _short(value: Any) -> float:
    return float(f"{float(value):.5g}")


def residual_quantiles(predicted: Floats, measured: Floats) -> list[tuple[float, float]]:
    """Return the quantiles of log(measured / predicted), ascending."""
    values = np.quantile(np.log(measured / predicted), QUANTILES)
    return [(q, _short(value)) for q, value in zip(QUANTILES, np.maximum.accumulate(values), strict=True)]


@dataclass(frozen=True)
class Evaluation:
    """Hold-out results of one identity.

    `splits`: figures by split: "random", "models" (shapes held out), "rows", "batch", "context" (the
    largest quarter of an axis held out). `test`: row indices of the random split's test side, with what was
    `predicted` and `measured` there. `bound`: which bound won, "fitted" or "data sheet".
    """

    splits: dict[str, Figures]
    test: NDArray[np.int64]
    predicted: Floats
    measured: Floats
    bound: str
    bound_of: BoundOf = field(repr=False)


def evaluate(measurements: Measurements, inputs: Inputs, settings: Settings) -> Evaluation:
    """Hold out rows at random, whole shapes and the largest sizes, one after the other.

    The bound is the one that extrapolates better; without anything to extrapolate to, the fitted one.
    """
    seconds = measurements.seconds
    wide = {name: split for name, split in extrapolation(measurements).items() if _useful(split)}

    def run(split: Split, bound_of: BoundOf) -> Floats:
        return _fit_on(inputs, seconds, split.train, bound_of, settings).seconds(_rows(inputs, split.test))

    found: dict[str, dict[str, Figures]] = {}
    choices: dict[str, BoundOf] = {
        "fitted": fitted_bound,
        "data sheet": lambda costs, _: data_sheet_bound(costs),
    }
    for name, bound_of in choices.items():
        found[name] = {
            axis: figures(run(split, bound_of), seconds[split.test]) for axis, split in wide.items()
        }

    def score(name: str) -> float:
        return math.fsum(math.log(max(float(f["median"]), 1e-4)) for f in found[name].values())

    # Few sizes of an exchange extrapolate by chance, and its links do not reach what the data sheet says.
    open_choice = wide and measurements.identity.operator not in EXCHANGES
    better = open_choice and score("data sheet") < score("fitted") + len(wide) * math.log(_MIN_GAIN)
    chosen = "data sheet" if better else "fitted"
    split = random_by_key(measurements, SEED)
    predicted = run(split, choices[chosen])
    splits = {"random": figures(predicted, seconds[split.test])}
    if len(set(measurements.model)) > 2:
        models = held_out_models(measurements, SEED)
        if _useful(models):
            splits["models"] = figures(run(models, choices[chosen]), seconds[models.test])
    splits |= found[chosen]
    return Evaluation(splits, split.test, predicted, seconds[split.test], chosen, choices[chosen])


def _useful(split: Split) -> bool:
    return len(split.test) >= MIN_TEST_ROWS and len(split.train) >= 2 * MIN_TEST_ROWS


def _rows(inputs: Inputs, rows: NDArray[np.int64]) -> Inputs:
    return Inputs(inputs.names, inputs.features[rows], inputs.costs.take(rows))


def _fit_on(
    inputs: Inputs, seconds: Floats, rows: NDArray[np.int64], bound_of: BoundOf, settings: Settings
) -> Fit:
    bound = bound_of(inputs.costs.take(rows), seconds[rows])
    return fit_ratio(inputs, seconds, rows, bound, settings)


def fit_all(inputs: Inputs, seconds: Floats, bound_of: BoundOf, settings: Settings) -> Fit:
    """Train on every row: what is shipped."""
    return _fit_on(inputs, seconds, np.arange(len(seconds)), bound_of, settings)
