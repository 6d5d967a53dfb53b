"""A run of two clusters, made by hand: one engine prefills, the two of the other decode.

Request i arrives at i seconds and prefills for `PREFILL_MS`; its KV is ready then, waits `WAIT_MS`, flies
`FLIGHT_MS` to decoding engine i % 2, which makes all its tokens as the queue of `fifo` does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from fifo import MS, NUM_BLOCKS, Ask, S, cluster, facts, fifo

from frontier.results import ClusterFacts, Result, RunFacts

PREFILL_MS, WAIT_MS, FLIGHT_MS = 40, 5, 15
LATER_NS = (PREFILL_MS + WAIT_MS + FLIGHT_MS) * MS
KV_BYTES = 3_000_000_000
PREFILL_BLOCKS = 51  # 50 usable, half of those of the decoding engines
TOKENS = 3
REQUESTS = 4


def raw_run(step_times: tuple[str, str] = ("roofline", "roofline"), **settings: Any) -> dict[str, Any]:
    """Return the raw columns; engine 0 prefills, 1 and 2 decode."""
    arrivals = [number * S for number in range(REQUESTS)]
    asks = [Ask(at + LATER_NS, TOKENS, replica=1 + number % 2) for number, at in enumerate(arrivals)]
    raw = fifo(asks, replicas=3, **settings)
    requests, arrival = raw["requests"], np.array(arrivals, np.int64)
    requests["arrival_ns"] = requests["scheduled_ns"] = arrival
    requests["cached_tokens"] = np.array([0, 10, 20, 30], np.uint32)
    raw["totals"]["prefix_hit_tokens"], raw["totals"]["prefix_lookup_tokens"] = 60 + 5, 800
    for kind in ("ttft", "e2e"):
        requests[f"{kind}_prefill_ns"] = requests[f"{kind}_prefill_ns"] + PREFILL_MS * MS
        for cause, spent in (("kv_transfer_wait", WAIT_MS), ("kv_transfer", FLIGHT_MS)):
            requests[f"{kind}_{cause}_ns"] = np.full(REQUESTS, spent * MS, np.int64)
    ready = arrival + PREFILL_MS * MS
    raw["transfers"] = {
        "request": np.arange(REQUESTS, dtype=np.uint32),
        "source": np.zeros(REQUESTS, np.uint32),
        "destination": requests["replica"].copy(),
        "ready_ns": ready,
        "start_ns": ready + WAIT_MS * MS,
        "end_ns": ready + (WAIT_MS + FLIGHT_MS) * MS,
        "bytes": np.full(REQUESTS, KV_BYTES, np.uint64),
    }
    steps = raw["steps"]
    steps["replica_offsets"] = steps["replica_offsets"] + np.array([0, *[REQUESTS] * 3], np.uint64)
    steps["end_ns"] = np.append(ready, steps["end_ns"])
    if "start_ns" in steps:
        steps["start_ns"] = np.append(arrival, steps["start_ns"])
        for name in set(steps) - {"replica_offsets", "end_ns", "start_ns"}:
            steps[name] = np.append(steps[name][:REQUESTS], steps[name])
    timeline = raw["timeline"]
    first = timeline["replica"] == 0
    done = np.array([(ready <= now).sum() for now in timeline["time_ns"]])
    timeline["busy_ns"] = np.where(first, done * PREFILL_MS * MS, timeline["busy_ns"])
    timeline["output_tokens"] = np.where(first, done, timeline["output_tokens"])
    timeline["peak_used_blocks"] = np.where(first, 25, timeline["peak_used_blocks"])
    timeline["used_block_ns"] = np.where(first, 25.0 * done * PREFILL_MS * MS, timeline["used_block_ns"])
    raw["clusters"] = [
        cluster("prefill", 1, step_times[0], num_blocks=PREFILL_BLOCKS, num_steps=REQUESTS),
        cluster("decode", 2, step_times[1], data_parallel_size=2, num_steps=raw["totals"]["num_steps"]),
    ]
    raw["totals"]["num_steps"] += REQUESTS
    assert NUM_BLOCKS > PREFILL_BLOCKS
    return raw


def pools(**changes: Any) -> RunFacts:
    """Return facts of 4 GPUs that differ by cluster: one prefills, three decode."""
    per_gpu = dict.fromkeys(("gpu_price_per_hour_usd", "peak_flops_per_s", "memory_bandwidth_bytes_per_s"))
    clusters = (
        ClusterFacts("prefill", 1, 6.0, 2e15, 4e12, 100.0, 1000.0, 8192),
        ClusterFacts("decode", 3, 2.0, 1e15, 2e12, 50.0, 500.0, 4096),
    )
    return facts(**per_gpu, max_model_len=None, clusters=clusters, **changes)


def run(run_facts: RunFacts | None = None, **settings: Any) -> Result:
    """Return the checked result."""
    return Result(raw_run(**settings), run_facts or facts())
