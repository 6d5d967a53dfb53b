"""Predictors for GPUs without measurements: one per family and number type, pooled over all GPUs.

Errors and residual quantiles are those of each GPU as GPUs of other generations predict it (compute
capability: H100, H200 and H800 know each other too well): what a GPU that nobody measured has to expect.

Only each backend's main kernel goes in, the one with most rows; and of decodes no rows whose KV cache was
found warm in L2, which depends on the size of L2 more than on anything else and does not happen in a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from frontier.hardware import load_gpu
from frontier.predictors.select import GENERIC
from frontier.training import holdout
from frontier.training.bounds import Costs, data_sheet_bound, fitted_bound
from frontier.training.fit import Fit, fit_ratio
from frontier.training.holdout import BoundOf, Evaluation, Figures
from frontier.training.identity import Identity
from frontier.training.inputs import Inputs, inputs_of
from frontier.training.measurements import Measurements, concat
from frontier.training.predictor import MIN_ROWS, Trained, assembled
from frontier.training.settings import SEED, Settings, settings_for
from frontier.training.traps import kv_bytes, l2_bytes

ROWS_PER_IDENTITY = 2_000
_COLD = (0.1, 1.5)
"""KV sizes, in sizes of L2: up to the first a read is short beside a launch, from the second it is cold."""
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


_ALL = "all left out in turn"


@dataclass(frozen=True)
class _Pool:
    """Rows of one GPU for one pooled predictor."""

    measurements: Measurements
    inputs: Inputs


def pool_key(identity: Identity) -> tuple[str, str, str] | None:
    """Return (operator, number type, KV cache type) of the pooled predictor that rows of `identity` serve."""
    special = {"mla", "batched"} & set(identity.facts)
    if identity.measurement not in FAMILIES.get(identity.operator, ()) or special:
        return None
    cache = str(identity.facts.get("kv_cache_dtype", ""))
    return identity.operator, identity.dtype, cache


def main_kernels(parts: Iterable[Measurements]) -> list[Measurements]:
    """Return a sample of the identity with most rows of each backend, without warm reads."""
    best: dict[str, Measurements] = {}
    for part in sorted(parts, key=lambda each: each.identity):
        known = best.get(part.identity.backend)
        if known is None or len(known) < len(part):
            best[part.identity.backend] = part
    cold = [_cold_reads(part) for part in best.values()]
    return [sampled(part) for part in cold if len(part)]


def _cold_reads(measurements: Measurements) -> Measurements:
    if "warm_l2" not in measurements.marks:
        return measurements
    size = kv_bytes(measurements) / l2_bytes(measurements.identity.gpu)
    return measurements.take((size <= _COLD[0]) | (size >= _COLD[1]), why="read from a warm L2")


def sampled(measurements: Measurements) -> Measurements:
    """Return a bounded sample of rows, the same every time."""
    rows = len(measurements)
    if rows <= ROWS_PER_IDENTITY:
        return measurements
    chosen = np.random.default_rng(SEED).choice(rows, ROWS_PER_IDENTITY, replace=False)
    return measurements.take(np.sort(chosen))


def pooled_predictors(found: Iterable[Measurements]) -> list[Trained]:
    """Return the pooled predictors of `found`, measurements of many GPUs; of two generations at least."""
    pools: dict[tuple[str, str, str], dict[str, list[Measurements]]] = {}
    for measurements in found:
        key = pool_key(measurements.identity)
        if key is not None and len(measurements):
            pools.setdefault(key, {}).setdefault(measurements.identity.gpu, []).append(measurements)
    trained = []
    for key, every in sorted(pools.items()):
        by_gpu = {gpu: main_kernels(parts) for gpu, parts in every.items()}
        generations = {load_gpu(gpu).compute_capability for gpu in by_gpu}
        if len(generations) >= 2 and all(sum(map(len, parts)) >= MIN_ROWS for parts in by_gpu.values()):
            trained.append(_pooled(key, by_gpu))
    return trained


def _pooled(key: tuple[str, str, str], by_gpu: Mapping[str, list[Measurements]]) -> Trained:
    operator, dtype, cache = key
    detail = {"kv_cache_dtype": cache} if cache else {}
    measurement = FAMILIES[operator][0]
    identity = Identity(GENERIC, GENERIC, "1", "pooled", measurement, operator, dtype, tuple(detail.items()))
    pools: dict[str, _Pool] = {}
    for gpu, parts in sorted(by_gpu.items()):
        inputs = joined([inputs_of(part) for part in parts])
        rows = concat([replace(part, identity=identity, marks={}) for part in parts])
        pools[gpu] = _Pool(rows, inputs)
    full = settings_for(identity, sum(len(pool.measurements) for pool in pools.values()))
    # A constant, little, or all that is known: what carries over to another generation decides.
    sizes = {
        "constant": replace(full, trees=1, depth=1, eta=1.0),
        "shallow": replace(full, depth=4),
        "full": full,
    }
    bounds: dict[str, BoundOf] = {
        "fitted": fitted_bound,
        "data sheet": lambda costs, _: data_sheet_bound(costs),
    }
    trials = {
        (name, size): _leave_one_out(pools, bound_of, settings)
        for name, bound_of in bounds.items()
        for size, settings in sizes.items()
    }
    name, size = min(trials, key=lambda trial: float(trials[trial].splits[_ALL]["median"]))
    evaluation = replace(trials[name, size], bound=f"{name}, {size} model", bound_of=bounds[name])
    whole = joined([pool.inputs for pool in pools.values()])
    measurements = concat([pool.measurements for pool in pools.values()])
    fit = holdout.fit_all(whole, measurements.seconds, bounds[name], sizes[size])
    return assembled(measurements, whole, fit, evaluation, {"pooled_over": sorted(pools)})


def _leave_one_out(pools: Mapping[str, _Pool], bound_of: BoundOf, settings: Settings) -> Evaluation:
    splits: dict[str, Figures] = {}
    predicted, measured = [], []
    for gpu, own in pools.items():
        generation = load_gpu(gpu).compute_capability
        others = [pool for name, pool in pools.items() if load_gpu(name).compute_capability != generation]
        inputs = joined([pool.inputs for pool in others])
        seconds = np.concatenate([pool.measurements.seconds for pool in others])
        fit: Fit = fit_ratio(
            inputs, seconds, np.arange(len(seconds)), bound_of(inputs.costs, seconds), settings
        )
        found = fit.seconds(own.inputs)
        splits[f"{gpu} left out"] = holdout.figures(found, own.measurements.seconds)
        predicted.append(found)
        measured.append(own.measurements.seconds)
    both = np.concatenate(predicted), np.concatenate(measured)
    splits[_ALL] = holdout.figures(*both)
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
