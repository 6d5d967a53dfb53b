"""What GPUs did and took in a window: utilisation, cost, energy (definitions: `docs/metrics.md`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frontier.power import power_of
from frontier.results.columns import Columns
from frontier.results.facts import RunFacts
from frontier.results.statistics import share

Grown = Mapping[str, NDArray[np.float64]]
"""What each counter of the time line grew by in a window, by engine."""


def utilisation(facts: RunFacts, duration_s: float, grown: Grown) -> dict[str, float | None]:
    """Return the share of the peak arithmetic and of the peak bandwidth that steps used; None if unknown."""
    values: dict[str, float | None] = {"mfu": None, "mbu": None}
    if not facts.counts_operations:
        return values
    pools = facts.gpu_pools
    flops = [pool.peak_flops_per_s for pool in pools]
    moved = [pool.memory_bandwidth_bytes_per_s for pool in pools]
    for name, counter, peaks in (("mfu", "flops", flops), ("mbu", "bytes", moved)):
        most = [pool.gpus * duration_s * peak for pool, peak in zip(pools, peaks, strict=True) if peak]
        if len(most) == len(pools):
            values[name] = sum(grown[counter].tolist()) / sum(most)
    return values


def cost(facts: RunFacts, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the cost of an hour and of tokens, by the rates in `values`; None where a price is unknown."""
    prices = [(pool.gpus, pool.gpu_price_per_hour_usd) for pool in facts.gpu_pools]
    known = [gpus * price for gpus, price in prices if price is not None]
    per_hour = sum(known) if len(known) == len(prices) else None
    costs: dict[str, Any] = {"cost_per_hour_usd": per_hour}
    for name, rate in (("output", values["output_throughput"]), ("total", values["total_token_throughput"])):
        cost = None if per_hour is None or not rate else per_hour / 3600.0 / rate * 1e6
        costs[f"cost_per_million_{name}_tokens_usd"] = cost
    return costs


def energy(
    columns: Columns, facts: RunFacts, values: Mapping[str, Any], grown: Grown | None
) -> dict[str, Any]:
    """Return the energy of the GPUs by `frontier.power`, which nothing was measured for."""
    names = ("energy_j", "energy_per_output_token_j", "energy_per_token_j", "mean_power_per_gpu_w")
    energies: dict[str, Any] = dict.fromkeys(names)
    # A linear formula and tables know no activity.
    if grown is None or not facts.counts_operations:
        return energies
    of_run = [slice(None)] if not facts.clusters else [cluster.slice for cluster in columns.clusters]
    energy_j = 0.0
    for pool, engines in zip(facts.gpu_pools, of_run, strict=True):
        power = power_of(pool.idle_power_w, pool.peak_power_w)
        if power is None:
            return energies
        energy_j += power.energy_j(pool.gpus * values["duration"], sum(grown["active_s"].tolist()[engines]))
    gpu_seconds = facts.gpus_total * values["duration"]
    output = values["total_output_tokens"]
    tokens = output + values["total_input_tokens"]
    return {
        "energy_j": energy_j,
        "energy_per_output_token_j": share(energy_j, output),
        "energy_per_token_j": share(energy_j, tokens),
        "mean_power_per_gpu_w": energy_j / gpu_seconds,
    }
