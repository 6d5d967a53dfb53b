"""A queue simulated by hand: columns with answers known in closed form.

Each replica serves one request at a time, in order of arrival. A prompt takes one step of `prefill_ns`,
which emits the first token; each further token takes one step of `decode_ns`. Nothing is cached, preempted or
shared, so TTFT = wait + prefill, E2E = TTFT + (tokens - 1) * decode, and every gap is `decode_ns`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from frontier.results import ATTRIBUTION_CAUSES, Objectives, Result, RunFacts

MS = 1_000_000
S = 1_000_000_000
NONE = 4_294_967_295
NUM_BLOCKS = 101  # 100 usable
FLOPS_PER_STEP = 2e12
BYTES_PER_STEP = 1e9
ACTIVE_S_PER_STEP = 0.004
BLOCKS_PER_REQUEST = 10


@dataclass
class Ask:
    """One request: arrival, output tokens, replica, and how it is to end."""

    arrival_ns: int
    tokens: int = 1
    replica: int = 0
    prompt: int = 100
    reject: int = 0


def fifo(
    asks: Sequence[Ask],
    *,
    prefill_ns: int = 100 * MS,
    decode_ns: int = 10 * MS,
    replicas: int = 1,
    interval_ns: int = S,
    wide_steps: bool = False,
    stop_ns: int | None = None,
    step_time: str = "roofline",
) -> dict[str, Any]:
    """Return the raw columns of the queue; `stop_ns` ends the run before the first step beyond it."""
    requests: dict[str, list[int]] = {name: [] for name in _REQUEST_COLUMNS}
    steps: list[list[tuple[int, int]]] = [[] for _ in range(replicas)]
    spans: list[list[tuple[int, int]]] = [[] for _ in range(replicas)]  # service of each request
    runs: list[tuple[int, int, int]] = []
    free_at = [0] * replicas
    for number, ask in enumerate(asks):
        row = dict.fromkeys(_REQUEST_COLUMNS, 0) | {"attempts": 1}
        row |= {"arrival_ns": ask.arrival_ns, "prompt_tokens": ask.prompt, "output_tokens": ask.tokens}
        row |= {"scheduled_ns": -1, "first_token_ns": -1, "finished_ns": -1, "session": NONE, "status": 2}
        row["replica"] = NONE if ask.reject else ask.replica
        if ask.reject:
            row |= {"status": 1, "reject_reason": ask.reject}
        else:
            begin = max(ask.arrival_ns, free_at[ask.replica])
            now, first = begin, len(steps[ask.replica])
            for token in range(ask.tokens):
                end = now + (decode_ns if token else prefill_ns)
                if stop_ns is not None and end > stop_ns:
                    break
                steps[ask.replica].append((now, end))
                now = end
                row["generated_tokens"] += 1
            if row["generated_tokens"]:
                runs.append((number, first, first + row["generated_tokens"] - 1))
                spans[ask.replica].append((begin, now))
                row |= {"scheduled_ns": begin, "first_token_ns": begin + prefill_ns}
                row |= {"ttft_queue_ns": begin - ask.arrival_ns, "e2e_queue_ns": begin - ask.arrival_ns}
                row |= {"ttft_prefill_ns": prefill_ns, "e2e_prefill_ns": prefill_ns}
                row["e2e_decode_ns"] = now - begin - prefill_ns
            if row["generated_tokens"] == ask.tokens:
                row |= {"status": 0, "finished_ns": now}
            free_at[ask.replica] = now if row["status"] == 0 else 1 << 60
        for name, value in row.items():
            requests[name].append(value)
    flat = [step for of_replica in steps for step in of_replica]
    last_ns = max([end for _, end in flat] + [ask.arrival_ns for ask in asks], default=0)
    end_ns = last_ns if stop_ns is None else stop_ns
    raw_steps: dict[str, Any] = {
        "replica_offsets": np.cumsum([0] + [len(each) for each in steps]).astype(np.uint64),
        "end_ns": np.array([end for _, end in flat], np.int64),
    }
    if wide_steps:
        raw_steps["start_ns"] = np.array([start for start, _ in flat], np.int64)
        for name in _WIDE:
            raw_steps[name] = np.full(len(flat), 1, np.uint64 if name == "kv_tokens" else np.uint32)
        raw_steps["graph"] = np.ones(len(flat), np.uint8)
    return {
        "requests": {name: np.array(requests[name], dtype) for name, dtype in _REQUEST_COLUMNS.items()},
        "steps": raw_steps,
        "token_runs": {
            **{
                name: np.array([run[index] for run in runs], np.uint32)
                for index, name in enumerate(("request", "first_step", "last_step"))
            },
            "tokens_per_step": np.ones(len(runs), np.uint32),
        },
        "timeline": _timeline(
            asks, requests, steps, spans, [*range(interval_ns, end_ns, interval_ns), end_ns]
        ),
        "totals": {
            "digest": "0123456789abcdef",
            "end_ns": end_ns,
            "num_events": 2 * len(flat),
            "num_steps": len(flat),
            "num_empty_steps": 0,
            "num_dummy_steps": 0,
            "draft_ns": 0,
            "replicas": replicas,
            "prefix_lookup_tokens": 0,
            "prefix_hit_tokens": 0,
            "drafted_per_position": (),
            "accepted_per_position": (),
        },
        "clusters": [cluster("serve", replicas, step_time, num_steps=len(flat))],
        "transfers": {name: np.array([], dtype) for name, dtype in _TRANSFER_COLUMNS.items()},
        "decision_log": None,
    }


def cluster(name: str, replicas: int, step_time: str = "roofline", **changes: Any) -> dict[str, Any]:
    """Return the raw row of a cluster."""
    row = {"name": name, "replicas": replicas, "data_parallel_size": 1, "num_blocks": NUM_BLOCKS}
    row |= {"num_steps": 0, "num_empty_steps": 0}
    return row | {"step_time": step_time, "trust": [], "kv_tiers": []} | changes


_TRANSFER_COLUMNS: dict[str, type] = {
    **dict.fromkeys(("request", "source", "destination"), np.uint32),
    **dict.fromkeys(("ready_ns", "start_ns", "end_ns"), np.int64),
    "bytes": np.uint64,
}
_REQUEST_COLUMNS: dict[str, type] = {
    **dict.fromkeys(("arrival_ns", "scheduled_ns", "first_token_ns", "finished_ns"), np.int64),
    **dict.fromkeys(("replica", "prompt_tokens", "output_tokens", "generated_tokens"), np.uint32),
    **dict.fromkeys(("cached_tokens", "preemptions", "attempts", "session"), np.uint32),
    **dict.fromkeys(("num_drafts", "draft_tokens", "accepted_tokens", "encoder_tokens"), np.uint32),
    "model": np.uint16,
    "priority": np.int32,
    "status": np.uint8,
    "reject_reason": np.uint8,
    **{f"{kind}_{cause}_ns": np.int64 for kind in ("ttft", "e2e") for cause in ATTRIBUTION_CAUSES},
}
_WIDE = (
    "prefill_tokens",
    "decode_tokens",
    "num_seqs",
    "kv_tokens",
    "num_running",
    "num_waiting",
    "free_blocks",
    "padded_tokens",
)


def _timeline(
    asks: Sequence[Ask],
    requests: dict[str, list[int]],
    steps: list[list[tuple[int, int]]],
    spans: list[list[tuple[int, int]]],
    times: list[int],
) -> dict[str, Any]:
    """Sample all replicas at each of `times`; busy and block time grow within steps, the rest at ends."""
    before = dict(zip(times, [0, *times], strict=False))
    finished = [(number, when) for number, when in enumerate(requests["finished_ns"]) if when >= 0]
    rows: list[tuple[float, ...]] = []
    for now in times:
        for replica, of_replica in enumerate(steps):
            busy = sum(max(min(end, now) - start, 0) for start, end in of_replica)
            done = [end for _, end in of_replica if end <= now]
            mine = [number for number, when in finished if when <= now and asks[number].replica == replica]
            serving = [span for span in spans[replica] if span[0] <= now < span[1]]
            held = sum(max(min(end, now) - start, 0) for start, end in spans[replica]) * BLOCKS_PER_REQUEST
            waiting = [
                number
                for number, ask in enumerate(asks)
                if ask.replica == replica
                and not ask.reject
                and ask.arrival_ns <= now
                and not 0 <= requests["scheduled_ns"][number] <= now
            ]
            served = any(begin <= now and end > before[now] for begin, end in spans[replica])
            blocks = (BLOCKS_PER_REQUEST * len(serving), BLOCKS_PER_REQUEST * served)
            gauges = (len(serving), len(waiting), *blocks)
            counters = (0, len(done), len(mine), 0, busy, held)
            work = tuple(each * len(done) for each in (FLOPS_PER_STEP, BYTES_PER_STEP, ACTIVE_S_PER_STEP))
            rows.append((now, replica, *gauges, *counters, *work))
    names = (
        "time_ns",
        "replica",
        "num_running",
        "num_waiting",
        "used_blocks",
        "peak_used_blocks",
        "prompt_tokens",
        "output_tokens",
    )
    names += ("finished", "preemptions", "busy_ns", "used_block_ns", "flops", "bytes", "active_s")
    floats = ("used_block_ns", "flops", "bytes", "active_s")
    return {
        name: np.array([row[index] for row in rows], np.float64 if name in floats else np.int64)
        for index, name in enumerate(names)
    }


def facts(**changes: Any) -> RunFacts:
    """Return the facts of a run on 4 GPUs at $3 per hour."""
    values: dict[str, Any] = {
        "gpus_total": 4,
        "step_time": "roofline",
        "gpu_price_per_hour_usd": 3.0,
        "peak_flops_per_s": 1e15,
        "memory_bandwidth_bytes_per_s": 2e12,
        "max_model_len": 8192,
        "objectives": Objectives(),
    }
    return RunFacts(**(values | changes))


def run(asks: Sequence[Ask], run_facts: RunFacts | None = None, **settings: Any) -> Result:
    """Return the checked result of the queue."""
    return Result(fifo(asks, **settings), run_facts or facts())
