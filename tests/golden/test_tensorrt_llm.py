"""TensorRT-LLM's schedulers against a slow restatement, on random cases."""

import json
from typing import Any

import numpy as np
import pytest
import ref_tensorrt_llm as ref
from hypothesis import given, settings
from hypothesis import strategies as st

from frontier import _frontier

STEP_NS = 1000
MAX_MODEL_LEN = 40
LENGTHS = st.tuples(st.integers(0, 12), st.integers(1, 24), st.integers(1, 16))
CASES = st.tuples(
    st.lists(LENGTHS, min_size=1, max_size=12),  # arrival in steps, prompt, output
    st.integers(1, 8),  # block size
    st.integers(0, 20),  # blocks beyond those of the longest request
    st.integers(1, 6),  # seats
    st.integers(8, 60),  # token budget
)


def ours(
    requests: list[tuple[int, int, int]], rules: dict[str, Any], block_size: int, blocks: int
) -> list[Any]:
    columns = zip(*requests, strict=True)
    arrival, prompt, output = (list(column) for column in columns)
    rates = ("per_prefill_token_ns", "per_decode_token_ns", "per_seq_ns", "per_kv_token_ns")
    engine = {
        "scheduler": {
            "kind": "baseline",
            "pipeline_parallel_size": 1,
            "block_size": block_size,
            "num_blocks": blocks,
            "max_model_len": MAX_MODEL_LEN,
            "policy": "fcfs",
            "rules": {"kind": "tensorrt_llm", "enable_block_reuse": False, **rules},
        },
        "step_time": {"kind": "linear", "per_step_ns": STEP_NS} | dict.fromkeys(rates, 0),
    }
    plan = {
        "schema_version": _frontier.PLAN_SCHEMA_VERSION,
        "seed": 0,
        "replication": 0,
        "clusters": [{"name": "serve", "replicas": 1, "router": {"policy": "round_robin"}, **engine}],
        "workload": {"kind": "trace", "arrivals": None, "num_requests": None},
        "output": {"steps": False, "timeline_interval_ns": 10**12, "decision_log": {"block_ids": False}},
        "limits": {"max_steps": None, "refuse_oversized": True, "livelock_steps": 1000},
    }
    trace = _frontier.Trace(
        np.array(arrival, dtype=np.int64) * STEP_NS,
        np.array(prompt, dtype=np.uint32),
        np.array(output, dtype=np.uint32),
    )
    raw = _frontier.simulate(json.dumps(plan), trace)
    records = [json.loads(line) for line in raw["decision_log"].splitlines()]
    return [
        (
            record["start"] // STEP_NS,
            [(entry[0], entry[3]) for entry in record["sched"]],
            record.get("pre", []),
        )
        for record in records
    ]


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("policy", ["guaranteed_no_evict", "max_utilization"])
@given(case=CASES)
@settings(max_examples=150)
def test_batches_and_pauses_are_the_restatements(
    policy: str,
    chunked: bool,
    case: tuple[list[tuple[int, int, int]], int, int, int, int],
) -> None:
    requests, block_size, spare, seats, budget = case
    requests = sorted(requests)
    blocks = -(-MAX_MODEL_LEN // block_size) + spare
    tokens = budget if chunked else max(budget, MAX_MODEL_LEN)
    rules = {
        "capacity_policy": policy,
        "max_batch_size": seats,
        "max_num_tokens": tokens,
        "enable_chunked_context": chunked,
    }
    expected = ref.run(
        [ref.Request(number, *request) for number, request in enumerate(requests)],
        policy=policy,
        num_blocks=blocks,
        block_size=block_size,
        seats=seats,
        budget=tokens,
        chunked=chunked,
    )
    assert ours(requests, rules, block_size, blocks) == expected


def test_the_restatement_pauses_under_pressure() -> None:
    requests = [ref.Request(number, 0, 12, 16) for number in range(3)]
    limits = {"num_blocks": 10, "block_size": 4, "seats": 3, "budget": 64, "chunked": False}
    log = ref.run(requests, policy="max_utilization", **limits)
    assert [paused for _, _, paused in log if paused] == [[2], [1], [2]]
