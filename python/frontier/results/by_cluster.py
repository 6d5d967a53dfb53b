"""The metrics of a window that are given for each cluster of a run that has several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frontier.results.columns import NEVER, NONE_U32, Columns, Ints
from frontier.results.statistics import share
from frontier.results.timeline import peak_used_blocks
from frontier.results.transfers import first_engine
from frontier.results.window import Window

NAMES = ("mean_kv_use", "peak_kv_use", "gpu_busy_share", "num_steps", "prefix_hit_rate")
"""What is given by cluster, each as `<name>_by_cluster`: a figure for each name of a cluster."""


def kv_use(
    columns: Columns, window: Window, used_block_ns: Iterable[float], peaks: Ints, engines: slice
) -> tuple[float | None, float | None]:
    """Return the mean and the peak share of the usable KV blocks of some engines.

    Args:
        columns: the run.
        window: the window.
        used_block_ns: what the counter of that name grew by in the window, by engine.
        peaks: the most blocks used at once, by engine (`peak_used_blocks`).
        engines: which of them.
    """
    blocks = columns.usable_blocks_of_engine[engines].tolist()
    shares = [share(peak, usable) for peak, usable in zip(peaks[engines].tolist(), blocks, strict=True)]
    span_ns = float(window.end_ns - window.start_ns)
    held = sum(list(used_block_ns)[engines])
    return share(held, span_ns * sum(blocks)), max(
        (each for each in shares if each is not None), default=None
    )


def by_cluster(
    columns: Columns,
    window: Window,
    arrived: NDArray[np.bool_],
    grown: Mapping[str, NDArray[np.float64]] | None,
) -> dict[str, Any]:
    """Return the metrics by cluster: each None in a run of one cluster.

    Args:
        columns: the run.
        window: the window.
        arrived: which requests arrived in it.
        grown: what the counters of the time line grew by in it, by engine; None where nothing is known.
    """
    values: dict[str, Any] = dict.fromkeys(f"{name}_by_cluster" for name in NAMES)
    if len(columns.clusters) == 1:
        return values
    found: dict[str, dict[str, Any]] = {name: {} for name in NAMES}
    requests = columns.requests
    engine = first_engine(columns)
    admitted = arrived & (requests["scheduled_ns"] != NEVER) & (engine != NONE_U32)
    peaks = peak_used_blocks(columns, window) if grown is not None else np.zeros(0, np.int64)
    for cluster in columns.clusters:
        name, engines = cluster.name, cluster.slice
        if grown is not None:
            used = grown["used_block_ns"].tolist()
            found["mean_kv_use"][name], found["peak_kv_use"][name] = kv_use(
                columns, window, used, peaks, engines
            )
            span_ns = float(window.end_ns - window.start_ns) * len(cluster.engines)
            found["gpu_busy_share"][name] = share(sum(grown["busy_ns"].tolist()[engines]), span_ns)
        rows = slice(*columns.replica_offsets[[engines.start, engines.stop]].tolist())
        found["num_steps"][name] = int(window.holds(columns.steps["end_ns"][rows]).sum())
        here = admitted & (engine >= engines.start) & (engine < engines.stop)
        cached, prompts = (
            int(requests[each][here].sum(dtype=np.int64)) for each in ("cached_tokens", "prompt_tokens")
        )
        found["prefix_hit_rate"][name] = share(cached, prompts)
    return values | {
        f"{name}_by_cluster": {key: value for key, value in each.items() if value is not None} or None
        for name, each in found.items()
    }
