"""Decode batches of unequal lengths, and batches of prefills and decodes in one kernel.

Public tables of most GPUs hold uniform batches alone. Two corrections are learned where both kinds were
measured (LLMServingSim's sweeps of two GPUs) and carried over to the others, marked as such:

- `decode_skew`: factor on the time of the same batch with every request at the mean;
- `mixed_per_head`: in `Tp + Td * (1 + per_head * (heads_per_kv_head - 1))`, of the times of both parts alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from frontier.training.sources.llmservingsim import AS_IT_IS, UNIFORM_MEAN

Floats = NDArray[np.float64]

KNOWS_UNEQUAL_LENGTHS = {"knows_unequal_lengths": 1}
"""Detail of decode predictors that saw batches of unequal lengths; they need no `decode_skew`."""
_MAX_MIXED_ROWS = 20_000
_SHARES = np.round(np.arange(-0.5, 6.001, 0.02), 2)
_PER_HEAD = np.round(np.arange(0, 1.001, 0.01), 2)
_ENOUGH_UNEQUAL = 0.05
"""Share of a table's rows with unequal lengths from which its predictor learns them."""
CARRIED_OVER = 0.5
"""Share of a GPU's log factor that other GPUs get: all of it made one of the two worse than no correction
(RTX PRO 6000, rows within 10 %: 84 % against 89 %), half improves both (95 %; RTX 4090 90 against 81). It was
chosen on the same batches that `generic_skew` is evaluated on."""


def as_operator(measurements: Measurements, operator: str) -> Measurements:
    """Return the same rows under another operator's name."""
    return replace(measurements, identity=replace(measurements.identity, operator=operator))


def knows_unequal_lengths(measurements: Measurements) -> bool:
    """Return whether decodes hold so many batches of unequal lengths that a predictor learns them."""
    if measurements.identity.operator != "decode_attention":
        return False
    return bool(measurements.unequal_rows().mean() >= _ENOUGH_UNEQUAL)


def decode_rows(uniform: Measurements, sweep: Measurements) -> Measurements:
    """Return decodes for one predictor: the uniform table and the sweep."""
    return concat([uniform, as_operator(sweep, "decode_attention")])


@dataclass(frozen=True)
class SkewRows:
    """Skewed batches of one GPU, with the measured time of each with all requests at the mean, in seconds.

    `target` is the logarithm of what the lengths' spread costs, free of any predictor's error.
    """

    measurements: Measurements
    inputs: Inputs
    uniform: Floats

    @property
    def target(self) -> Floats:
        """Return log(measured / measured at the mean) of each row."""
        return np.asarray(np.log(self.measurements.seconds / self.uniform))


def skew_rows(sweep: Measurements) -> SkewRows:
    """Return the skewed batches of a sweep whose time at the mean was measured beside them."""
    role, pair = sweep.marks["skew_role"], sweep.marks["pair"]
    uniform = np.flatnonzero(role == UNIFORM_MEAN)
    pairs, first = np.unique(pair[uniform], return_index=True)
    known = (role == AS_IT_IS) & np.isin(pair, pairs)
    rows = sweep.take(known)
    at = uniform[first[np.searchsorted(pairs, pair[known])]]
    return SkewRows(rows, inputs_of(rows), sweep.seconds[at])


def _anchored(inputs: Inputs, target: Floats) -> tuple[Inputs, Floats]:
    """Return the rows, and beside each the same batch without any spread, whose factor is 1."""
    equal = inputs.features.copy()
    equal[:, inputs.names.index("kv_max_ratio")] = 1.0
    equal[:, inputs.names.index("kv_variation")] = 0.0
    anchors = replace(inputs, features=equal)
    return joined([inputs, anchors]), np.concatenate([target, np.zeros(len(target))])


def _joined(parts: list[SkewRows]) -> tuple[Inputs, Floats]:
    target = CARRIED_OVER * np.concatenate([part.target for part in parts])
    return _anchored(joined([part.inputs for part in parts]), target)


def generic_skew(parts: Mapping[str, SkewRows]) -> Trained:
    """Return the factor for batches of unequal lengths, learned from all GPUs in `parts`.

    It is evaluated on each GPU by what the others teach, on the measured times at the mean: its errors, and
    its residual quantiles, are those of the factor alone on a GPU without such a sweep; the predictor of
    uniform batches has its own. `accuracy.splits` also has the errors without any correction.
    """
    gpus = sorted(parts)
    first = parts[gpus[0]].measurements
    identity = Identity(
        "generic",
        "generic",
        "1",
        "decode_skew",
        first.identity.measurement,
        "decode_skew",
        first.identity.dtype,
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
    fit = fit_log(inputs, target, np.arange(len(target)), one, settings)
    rows = concat([replace(parts[gpu].measurements, identity=identity) for gpu in gpus])
    evaluation = Evaluation(
        splits,
        np.arange(len(rows)),
        np.concatenate(predicted),
        np.concatenate(measured),
        "none",
        lambda *_: one,
    )
    return assembled(rows, inputs, replace(fit, bound=Bound(0.0)), evaluation, {"transferred_from": gpus})


@dataclass(frozen=True)
class MixedShare:
    """What a mixed batch takes, from the times of both parts alone, and the errors of each form tried.

    `per_head` goes into packs, of `Tp + Td * (1 + per_head * (heads_per_kv_head - 1))`: kernels that do not
    pack the query heads of a KV head into one tile read keys and values again for each of them once a
    prefill is in the batch. `share`, of `max(Tp, Td) + share * min(Tp, Td)`, is for comparison.
    """

    share: float
    per_head: float
    rows: int
    figures: dict[str, Figures]


def mixed_forms(
    mixed: Measurements, prefill: Fit, decode: Fit, given: tuple[float, float] | None = None
) -> MixedShare:
    """Fit share and `per_head` on mixed batches, given predictors of both parts; or evaluate given ones."""
    rows = mixed
    if len(rows) > _MAX_MIXED_ROWS:
        chosen = np.random.default_rng(SEED).choice(len(rows), _MAX_MIXED_ROWS, replace=False)
        rows = rows.take(np.sort(chosen))
    decodes = inputs_of(rows, operator="decode_attention")
    first = prefill.seconds(inputs_of(rows, operator="prefill_attention"))
    second = decode.seconds(decodes)
    others = decodes.chosen(("heads_per_kv_head",))[:, 0].astype(np.float64) - 1
    longer, shorter = np.maximum(first, second), np.minimum(first, second)
    seconds = rows.seconds

    def by_share(share: float) -> Floats:
        return np.asarray(np.maximum(longer + share * shorter, 1e-9))

    def by_head(per_head: float) -> Floats:
        return np.asarray(first + second * (1 + per_head * others))

    if given is None:
        share, per_head = _best(by_share, _SHARES, seconds), _best(by_head, _PER_HEAD, seconds)
    else:
        share, per_head = given
    once = min(prefill.bound.launch_s, decode.bound.launch_s)
    alternatives: dict[str, Any] = {
        "share": by_share(share),
        "share within 0 to 1": by_share(min(max(share, 0.0), 1.0)),
        "per head": by_head(per_head),
        "sum": longer + shorter,
        "sum minus one launch": longer + shorter - once,
        "longer alone": longer,
    }
    found = {name: holdout.figures(times, seconds) for name, times in alternatives.items()}
    return MixedShare(share, per_head, len(rows), found)


def _best(form: Callable[[float], Floats], grid: Floats, seconds: Floats) -> float:
    return float(min(grid, key=lambda value: float(np.abs(np.log(form(float(value)) / seconds)).mean())))
