"""Decode batches of unequal lengths, and batches of prefills and decodes in one kernel.

Public tables of most GPUs hold uniform batches alone. Two corrections are learned where both kinds were
measured (LLMServingSim's sweeps of two GPUs) and carried over to the others, marked as such:

- `decode_skew`: factor on the time of the same batch with every request at the mean;
- `mixed_share`: in `max(Tp, Td) + share * min(Tp, Td)`, of the times of both parts alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frontier.training import holdout
from frontier.training.bounds import Bound
from frontier.training.fit import Fit, fit_log
from frontier.training.generic import joined
from frontier.training.holdout import Evaluation, Figures
from frontier.training.identity import Identity
from frontier.training.inputs import Inputs, inputs_of
from frontier.training.measurements import Measurements, concat
from frontier.training.predictor import Trained, assembled
from frontier.training.settings import SEED, settings_for
from frontier.training.sources.llmservingsim import AS_IT_IS

Floats = NDArray[np.float64]

_MAX_MIXED_ROWS = 20_000
_SHARES = np.round(np.arange(-0.5, 6.001, 0.02), 2)


def as_operator(measurements: Measurements, operator: str) -> Measurements:
    """Return the same rows under another operator's name."""
    return replace(measurements, identity=replace(measurements.identity, operator=operator))


def decode_rows(uniform: Measurements, sweep: Measurements, *, skewed: bool) -> Measurements:
    """Return decodes for one predictor: the uniform table and the sweep, all of it or its uniform timings."""
    rows = sweep if skewed else sweep.take(sweep.marks["skew_role"] != AS_IT_IS)
    return concat([uniform, as_operator(rows, "decode_attention")])


@dataclass(frozen=True)
class SkewRows:
    """Skewed batches of one GPU: rows, and log(measured / predicted by a predictor of uniform batches)."""

    measurements: Measurements
    inputs: Inputs
    uniform: Floats
    target: Floats


def skew_rows(sweep: Measurements, uniform: Fit) -> SkewRows:
    """Return the skewed batches of a sweep with what a predictor of uniform batches makes of them."""
    rows = sweep.take(sweep.marks["skew_role"] == AS_IT_IS)
    inputs = inputs_of(rows)
    predicted = uniform.seconds(inputs)
    return SkewRows(rows, inputs, predicted, np.log(rows.seconds / predicted))


def _joined(parts: list[SkewRows]) -> tuple[Inputs, Floats]:
    return joined([part.inputs for part in parts]), np.concatenate([part.target for part in parts])


def generic_skew(parts: Mapping[str, SkewRows]) -> Trained:
    """Return the factor for batches of unequal lengths, learned from all GPUs in `parts`.

    It is evaluated on each GPU by what the others teach: its errors, and its residual quantiles, are those of
    a GPU without such a sweep. `accuracy.splits` also has the errors without any correction.
    """
    gpus = sorted(parts)
    first = parts[gpus[0]].measurements
    identity = Identity(
        "generic", "generic", "1", "decode_skew", first.identity.measurement, "decode_skew", first.identity.dtype
    )
    settings = settings_for(identity, sum(len(part.target) for part in parts.values()))
    one = Bound(1.0)
    splits: dict[str, Figures] = {}
    predicted, measured = [], []
    for gpu in gpus:
        inputs, target = _joined([parts[other] for other in gpus if other != gpu])
        fit = fit_log(inputs, target, np.arange(len(target)), one, settings)
        own = parts[gpu]
        found = own.uniform * np.exp(fit.margin(own.inputs).astype(np.float64))
        splits[f"{gpu} held out"] = holdout.figures(found, own.measurements.seconds)
        splits[f"{gpu} uncorrected"] = holdout.figures(own.uniform, own.measurements.seconds)
        predicted.append(found)
        measured.append(own.measurements.seconds)
    inputs, target = _joined([parts[gpu] for gpu in gpus])
    everything = np.arange(len(target))
    fit = fit_log(inputs, target, everything, one, settings)
    rows = concat([replace(parts[gpu].measurements, identity=identity) for gpu in gpus])
    evaluation = Evaluation(
        splits, everything, np.concatenate(predicted), np.concatenate(measured), "none", lambda *_: one
    )
    return assembled(rows, inputs, replace(fit, bound=Bound(0.0)), evaluation, {"transferred_from": gpus})


@dataclass(frozen=True)
class MixedShare:
    """The share of the shorter part that a mixed batch takes on top, and its errors against alternatives."""

    share: float
    rows: int
    figures: dict[str, Figures]


def mixed_share(mixed: Measurements, prefill: Fit, decode: Fit, given: float | None = None) -> MixedShare:
    """Fit the share on mixed batches, given predictors of both parts; or evaluate one that is given."""
    rows = mixed
    if len(rows) > _MAX_MIXED_ROWS:
        chosen = np.random.default_rng(SEED).choice(len(rows), _MAX_MIXED_ROWS, replace=False)
        rows = rows.take(np.sort(chosen))
    first = prefill.seconds(inputs_of(rows, operator="prefill_attention"))
    second = decode.seconds(inputs_of(rows, operator="decode_attention"))
    longer, shorter = np.maximum(first, second), np.minimum(first, second)
    seconds = rows.seconds

    def loss(share: float) -> float:
        return float(np.abs(np.log(np.maximum(longer + share * shorter, 1e-9) / seconds)).mean())

    share = float(min(_SHARES, key=lambda value: (loss(float(value)), value))) if given is None else given
    once = min(prefill.bound.launch_s, decode.bound.launch_s)
    alternatives: dict[str, Any] = {
        "share": longer + share * shorter,
        "sum": longer + shorter,
        "sum minus one launch": longer + shorter - once,
        "longer alone": longer,
    }
    found = {name: holdout.figures(times, seconds) for name, times in alternatives.items()}
    return MixedShare(share, len(rows), found)
