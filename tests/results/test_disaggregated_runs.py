"""Runs of two clusters through the simulator: their results obey every law, whatever the way KV moves."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import numpy as np
import pytest

import frontier
from frontier import _frontier
from frontier.lowering import lower
from frontier.results import Result
from frontier.simulation import run_facts

REQUESTS = 120
BLOCK_BYTES = 2 << 20
SCENARIO = {
    "model": "llama-3.1-8b",
    "hardware": {"gpu": "h100"},
    "engine": {
        "step_time": {"linear": {"per_step": "5ms", "per_prefill_token": "20us"}},
        "num_gpu_blocks_override": 400,
        "max_model_len": 2048,
    },
    "workload": {
        "synthetic": {
            "arrivals": {"poisson": {"rate": 20}},
            "num_requests": REQUESTS,
            "prompt_tokens": {"lognormal": {"mean": 400, "cv": 1, "max": 1500}},
            "output_tokens": {"uniform": {"min": 1, "max": 60}},
        }
    },
}
WAYS = [
    ("pull", "request"),
    ("store", "request"),
    *(("push", part) for part in ("request", "chunk", "layer")),
]
LINKS: list[dict[str, Any]] = [
    {"kind": "serial", "ns_per_block": 200_000},
    {"kind": "dedicated", "bytes_per_s": 5e9},
]


def two_clusters(
    way: tuple[str, str], link: dict[str, Any], *, uncached: int | None = None, max_steps: int | None = None
) -> Result:
    scenario = frontier.Scenario.from_dict(SCENARIO)
    lowered = lower(scenario)
    plan = json.loads(lowered.plan_json)
    (one,) = plan["clusters"]
    plan["clusters"] = [one | {"name": "prefill"}, one | {"name": "decode", "replicas": 3}]
    leg = {"weights": [1.0], "balance": "weighted", "encodes": None}
    receives = {
        "mode": way[0],
        "granularity": way[1],
        "first_token": "recomputed",
        "proxy_latency_ns": 1_000_000,
        "latency_ns": 10_000,
        "bytes_per_block": BLOCK_BYTES,
        "fixed_bytes": 0,
        "num_layers": 32,
        "transport": link,
    }
    direct = {"max_uncached_tokens": uncached, "deflect_above_tokens": None}
    path = {
        "legs": [
            leg | {"clusters": [0], "receives": None},
            leg | {"clusters": [1], "receives": receives},
        ],
        "direct": None if uncached is None else direct,
    }
    plan["paths"] = [path]
    plan["limits"]["max_steps"] = max_steps
    raw = _frontier.simulate(json.dumps(plan), None)
    return Result(raw, run_facts(scenario, lowered))


@pytest.mark.parametrize(("way", "link"), list(product(WAYS, LINKS)))
def test_results_obey_the_laws(way: tuple[str, str], link: dict[str, Any]) -> None:
    for uncached, max_steps in product((None, 200), (None, 150)):
        result = two_clusters(way, link, uncached=uncached, max_steps=max_steps)
        transfers, summary = result.transfers, result.summary()
        assert 0 < summary.kv_transfers <= transfers.height <= REQUESTS
        assert set(transfers["source_cluster"]) == {"prefill"}
        assert set(transfers["destination_cluster"]) == {"decode"}
        assert sum(summary.num_steps_by_cluster.values()) <= result.totals["num_steps"]
        if max_steps is None:
            assert set(result.requests["cluster"]) == {"decode"}
            prompts = result.requests["prompt_tokens"].to_numpy()
            handed = transfers["request"].to_numpy()
            assert set(handed) == set(np.flatnonzero(prompts > (uncached or 0)))
            blocks = -(-prompts[handed].astype(np.int64) // 16)
            # A store is written, then read.
            times = 2 if way[0] == "store" else 1
            assert (transfers["bytes"].to_numpy() <= times * blocks * BLOCK_BYTES).all()
            assert summary.kv_transfers == transfers.height
            assert sum(summary.num_steps_by_cluster.values()) == result.totals["num_steps"]


def test_a_stopped_run_may_not_know_where_kv_goes() -> None:
    for max_steps in range(20, 400, 20):
        two_clusters(("store", "request"), LINKS[1], max_steps=max_steps)
