"""Predictors for GPUs without measurements: one per family and number type, pooled over all GPUs.

Errors and residual quantiles are those of each GPU as the others predict it: what a GPU that nobody
measured has to expect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from frontier.training import holdout
from frontier.training.bounds import Costs, data_sheet_bound, fitted_bound
from frontier.training.fit import Fit, fit_ratio
from frontier.training.holdout import BoundOf, Evaluation, Figures
from frontier.training.identity import Identity
from frontier.training.inputs import Inputs, inputs_of
from frontier.training.measurements import Measurements, concat
from frontier.training.predictor import MIN_ROWS, Trained, assembled
from frontier.training.recipe import GENERIC
from frontier.training.settings import SEED, Settings, settings_for

ROWS_PER_IDENTITY = 1_200
FAMILIES: dict[str, tuple[str, ...]] = {
    "gemm": ("cuda_graph",),
    "prefill_attention": ("cuda_graph",),
    "decode_attention": ("cuda_graph",),
    "fused_moe": ("cuda_graph",),
    "rms_norm": ("kernel",),
    "rope": ("kernel",),
    "activation": ("kernel",),
    "embedding": ("kernel",),
    "kv_write": ("kernel",),
    "sampler": ("kernel",),
    "quant_fp8": ("cuda_graph",),
}
# Number types that share one predictor, by the name it goes under.
_CLASSES = {"fp8_block": "fp8", "int8": "fp8", "mxfp4": "int4"}


@dataclass(frozen=True)
class _Pool:
    """Rows of one GPU for one pooled predictor."""

    measurements: Measurements
    inputs: Inputs


def pool_key(identity: Identity) -> tuple[str, str, str] | None:
    """Return (operator, number type, KV cache type) of the pooled predictor that rows of `identity` serve."""
    if identity.measurement not in FAMILIES.get(identity.operator, ()):
        return None
    cache = str(identity.facts.get("kv_cache_dtype", ""))
    return identity.operator, _CLASSES.get(identity.dtype, identity.dtype), cache


def sampled(measurements: Measurements) -> Measurements:
    """Return a bounded sample of rows, the same every time."""
    rows = len(measurements)
    if rows <= ROWS_PER_IDENTITY:
        return measurements
    chosen = np.random.default_rng(SEED).choice(rows, ROWS_PER_IDENTITY, replace=False)
    return measurements.take(np.sort(chosen))


def pooled_predictors(found: Iterable[Measurements]) -> list[Trained]:
    """Return the pooled predictors of `found`, measurements of many GPUs; two GPUs at least for each."""
    pools: dict[tuple[str, str, str], dict[str, list[Measurements]]] = {}
    for measurements in found:
        key = pool_key(measurements.identity)
        if key is not None and len(measurements):
            pools.setdefault(key, {}).setdefault(measurements.identity.gpu, []).append(sampled(measurements))
    trained = []
    for key, by_gpu in sorted(pools.items()):
        if len(by_gpu) >= 2 and all(sum(map(len, parts)) >= MIN_ROWS for parts in by_gpu.values()):
            trained.append(_pooled(key, by_gpu))
    return trained


def _pooled(key: tuple[str, str, str], by_gpu: Mapping[str, list[Measurements]]) -> Trained:
    operator, dtype, cache = key
    detail = {"kv_cache_dtype": cache} if cache else {}
    measurement = FAMILIES[operator][0]
    identity = Identity(
        GENERIC, GENERIC, "1", "pooled", measurement, operator, dtype, tuple(detail.items())
    )
    pools: dict[str, _Pool] = {}
    for gpu, parts in sorted(by_gpu.items()):
        inputs = joined([inputs_of(part) for part in parts])
        rows = concat([replace(part, identity=identity, marks={}) for part in parts])
        pools[gpu] = _Pool(rows, inputs)
    rows = sum(len(pool.measurements) for pool in pools.values())
    settings = settings_for(identity, rows)
    bounds: dict[str, BoundOf] = {"fitted": fitted_bound, "data sheet": lambda costs, _: data_sheet_bound(costs)}
    trials = {name: _leave_one_out(pools, bound_of, settings) for name, bound_of in bounds.items()}
    chosen = min(trials, key=lambda name: float(trials[name].splits["all left out in turn"]["median"]))
    evaluation = replace(trials[chosen], bound=chosen, bound_of=bounds[chosen])
    whole = joined([pool.inputs for pool in pools.values()])
    measurements = concat([pool.measurements for pool in pools.values()])
    fit = holdout.fit_all(whole, measurements.seconds, bounds[chosen], settings)
    return assembled(measurements, whole, fit, evaluation, {"pooled_over": sorted(pools)})


def _leave_one_out(pools: Mapping[str, _Pool], bound_of: BoundOf, settings: Settings) -> Evaluation:
    splits: dict[str, Figures] = {}
    predicted, measured = [], []
    for gpu, own in pools.items():
        others = [pool for name, pool in pools.items() if name != gpu]
        inputs = joined([pool.inputs for pool in others])
        seconds = np.concatenate([pool.measurements.seconds for pool in others])
        fit: Fit = fit_ratio(inputs, seconds, np.arange(len(seconds)), bound_of(inputs.costs, seconds), settings)
        found = fit.seconds(own.inputs)
        splits[f"{gpu} left out"] = holdout.figures(found, own.measurements.seconds)
        predicted.append(found)
        measured.append(own.measurements.seconds)
    both = np.concatenate(predicted), np.concatenate(measured)
    splits["all left out in turn"] = holdout.figures(*both)
    return Evaluation(splits, np.arange(len(both[0])), *both, "fitted", bound_of)


def joined(parts: list[Inputs]) -> Inputs:
    """Return the rows of several inputs of one operator."""

    def both(name: str) -> holdout.Floats:
        return np.concatenate([getattr(part.costs, name) for part in parts])

    return Inputs(
        parts[0].names,
        np.concatenate([part.features for part in parts]),
        Costs(both("compute_s"), both("memory_s"), both("network_s"), both("launch_s")),
    )
