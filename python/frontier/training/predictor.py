"""One predictor as it goes into a pack: an entry of the manifest, and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frontier.training import holdout
from frontier.training.bounds import Bound
from frontier.training.export import ensemble_tensors, static_shape_hash
from frontier.training.fit import Fit
from frontier.training.holdout import Evaluation, Figures
from frontier.training.identity import Identity
from frontier.training.inputs import Inputs, inputs_of
from frontier.training.measurements import Measurements
from frontier.training.settings import SEED, SHAPES, Settings, settings_for
from frontier.training.traps import cold_correction

Tensors = dict[str, NDArray[Any]]

MIN_ROWS = 60
"""Rows from which trees are worth training: below, a fifth of them tests nothing."""
_MAX_SAMPLES = 2_000


@dataclass(frozen=True)
class Samples:
    """Hold-out rows for plots: times in seconds, and features by name."""

    predicted: NDArray[np.float64]
    measured: NDArray[np.float64]
    features: dict[str, NDArray[np.float32]]


@dataclass(frozen=True)
class Trained:
    """A predictor: its entry of the manifest and its tensors.

    `errors`: |predicted / measured - 1| of the random split's test rows; `splits`: figures by split;
    `repeat_errors`: the same of repeated rows against their median, empty where nothing was repeated.
    """

    identity: Identity
    entry: dict[str, Any]
    tensors: Tensors
    errors: NDArray[np.float64]
    splits: dict[str, Figures]
    samples: Samples | None = field(default=None, repr=False)
    repeat_errors: NDArray[np.float64] = field(default_factory=lambda: np.empty(0), repr=False)

    @property
    def size_bytes(self) -> int:
        """Return the bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def train(
    measurements: Measurements,
    *,
    skewed: bool = False,
    detail: Mapping[str, Any] | None = None,
    settings: Settings | None = None,
) -> Trained:
    """Evaluate on held-out rows, then train on all of them.

    Args:
        measurements: at least `MIN_ROWS` rows of one identity, for which trees are trained.
        skewed: decode batches of unequal lengths are among the rows.
        detail: facts to add to those of the identity.
        settings: size and features, those of the family if None.
    """
    identity = measurements.identity
    if settings is None:
        noise = measurements.repeat_floor().p95
        settings = settings_for(identity, len(measurements), skewed=skewed, repeats_p95=noise)
    inputs = inputs_of(measurements)
    evaluation = holdout.evaluate(measurements, inputs, settings)
    fit = holdout.fit_all(inputs, measurements.seconds, evaluation.bound_of, settings)
    return assembled(measurements, inputs, fit, evaluation, detail or {})


def assembled(
    measurements: Measurements,
    inputs: Inputs,
    fit: Fit,
    evaluation: Evaluation,
    detail: Mapping[str, Any],
) -> Trained:
    """Return a trained ensemble with its evaluation as a predictor."""
    identity = measurements.identity
    tensors, _, base_score = ensemble_tensors(fit.booster, leaves="f16")
    shapes = SHAPES.get(identity.operator, ())
    tensors["static_shapes"] = shape_hashes(inputs, shapes)
    used = inputs.chosen(fit.features)
    cold = None
    if identity.operator == "decode_attention" and "warm_l2" in measurements.marks:
        cold = cold_correction(measurements)
    entry = {
        **identity_entry(identity, detail),
        "form": "trees",
        "features": list(fit.features),
        "ranges": [[float(low), float(high)] for low, high in zip(used.min(0), used.max(0), strict=True)],
        "bound": asdict(fit.bound),
        "cold": None if cold is None else {"l2_bytes": cold.l2_bytes, "s_per_byte": cold.s_per_byte},
        "calibration": 1.0,
        "base_score": base_score,
        "residual_quantiles": holdout.residual_quantiles(evaluation.predicted, evaluation.measured),
        "shapes": ",".join(shapes),
        "accuracy": {
            "splits": evaluation.splits,
            "repeats": repeats(measurements),
            "bound": evaluation.bound,
        },
        **provenance(measurements),
    }
    errors = np.abs(evaluation.predicted / evaluation.measured - 1)
    kept = evaluation.test
    pick = np.arange(len(kept))
    if len(pick) > _MAX_SAMPLES:
        pick = np.sort(np.random.default_rng(SEED).choice(pick, _MAX_SAMPLES, replace=False))
    samples = Samples(
        evaluation.predicted[pick],
        evaluation.measured[pick],
        {name: used[kept[pick], i] for i, name in enumerate(fit.features)},
    )
    repeated = measurements.repeat_errors()
    return Trained(identity, entry, tensors, errors, evaluation.splits, samples, repeated)


def identity_entry(identity: Identity, detail: Mapping[str, Any]) -> dict[str, Any]:
    """Return the identity as the first fields of an entry."""
    return {
        "backend": identity.backend,
        "version": identity.version,
        "kernel": identity.kernel,
        "measurement": identity.measurement,
        "operator": identity.operator,
        "dtype": identity.dtype,
        "detail": {**identity.facts, **detail},
    }


def provenance(measurements: Measurements) -> dict[str, Any]:
    """Return rows, drops and sources as an entry has them."""
    return {
        "rows": len(measurements),
        "rows_dropped": dict(sorted(measurements.dropped.items())),
        "sources": [asdict(source) for source in measurements.sources],
    }


def repeats(measurements: Measurements) -> dict[str, float | int] | None:
    """Return the repeat floor, None where nothing was repeated."""
    floor = measurements.repeat_floor()
    if not floor.rows:
        return None
    return {
        name: value if isinstance(value, int) else round(value, 6) for name, value in asdict(floor).items()
    }


def shape_hashes(inputs: Inputs, shapes: tuple[str, ...]) -> NDArray[np.uint64]:
    """Return the sorted hashes of the distinct static shapes of some rows."""
    if not shapes:
        return np.empty(0, np.uint64)
    distinct = np.unique(inputs.chosen(shapes), axis=0).astype(np.float64)
    return np.array(sorted({static_shape_hash(list(row)) for row in distinct}), np.uint64)


def with_detail(trained: Trained, detail: Mapping[str, Any]) -> Trained:
    """Return the same predictor with further facts in its detail."""
    return replace(trained, entry={**trained.entry, "detail": {**trained.entry["detail"], **detail}})


NO_BOUND = asdict(Bound(0.0))
