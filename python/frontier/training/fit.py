"""Train one ensemble on log(measured / bound), and predict with it.

Training is deterministic: histograms, no sampling, one thread (which results do not depend on, and which is
faster than two where cores are shared). Leaves are rounded to a grid of 1/2048, which moves a time by less
than 0.1 %, so that packs compress well; what is evaluated is what is shipped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from frontier.errors import ConfigError, Issue
from frontier.training.bounds import Bound
from frontier.training.inputs import Inputs
from frontier.training.settings import MAX_BIN, Settings

if TYPE_CHECKING:
    import xgboost

Floats = NDArray[np.float64]

LEAF_GRID = 2048.0


def require_xgboost() -> Any:
    """Return the module xgboost.

    Raises:
        ConfigError: it is not installed; the message names the extra.
    """
    try:
        import xgboost  # noqa: PLC0415 - slow to import, and only training needs it
    except ModuleNotFoundError as error:
        message = "training needs XGBoost; install it with `pip install 'frontier-sim[train]'`"
        raise ConfigError(Issue("xgboost", None, message)) from error
    return xgboost


@dataclass(frozen=True)
class Fit:
    """A trained ensemble with its bound and the names of its features, in order."""

    booster: xgboost.Booster
    bound: Bound
    features: tuple[str, ...]

    def margin(self, inputs: Inputs) -> NDArray[np.float32]:
        """Return the logarithm of time over bound of each row."""
        matrix = require_xgboost().DMatrix(inputs.chosen(self.features), nthread=1)
        return np.asarray(self.booster.predict(matrix), dtype=np.float32)

    def seconds(self, inputs: Inputs) -> Floats:
        """Return the predicted time of each row."""
        return np.asarray(self.bound.seconds(inputs.costs) * np.exp(self.margin(inputs).astype(np.float64)))


def fit_ratio(
    inputs: Inputs, seconds: Floats, rows: NDArray[np.int64], bound: Bound, settings: Settings
) -> Fit:
    """Train on some rows.

    Args:
        inputs: features and costs of all rows.
        seconds: measured times of all rows.
        rows: indices of those to train on.
        bound: what the trees correct.
        settings: size and objective.
    """
    target = np.log(seconds[rows] / bound.seconds(inputs.costs.take(rows)))
    return fit_log(inputs, target, rows, bound, settings)


def fit_log(inputs: Inputs, target: Floats, rows: NDArray[np.int64], bound: Bound, settings: Settings) -> Fit:
    """Train on a logarithm given for each of `rows`."""
    xgb = require_xgboost()
    names = settings.features or inputs.names
    matrix = xgb.DMatrix(inputs.chosen(names)[rows], label=target.astype(np.float32), nthread=1)
    parameters = {
        "objective": settings.objective,
        "max_depth": settings.depth,
        "eta": settings.eta,
        "tree_method": "hist",
        "max_bin": MAX_BIN,
        "lambda": 1.0,
        "nthread": 1,
        "seed": 0,
    }
    booster = xgb.train(parameters, matrix, settings.trees)
    return Fit(_on_grid(booster), bound, tuple(names))


def _on_grid(booster: xgboost.Booster) -> xgboost.Booster:
    """Return the booster with leaves rounded to multiples of 1 / `LEAF_GRID`."""
    document = json.loads(booster.save_raw("json"))
    for tree in document["learner"]["gradient_booster"]["model"]["trees"]:
        values = tree["split_conditions"]
        for node, left in enumerate(tree["left_children"]):
            if left == -1:
                values[node] = round(values[node] * LEAF_GRID) / LEAF_GRID
    rounded: xgboost.Booster = require_xgboost().Booster()
    rounded.load_model(bytearray(json.dumps(document).encode()))
    return rounded
