"""Replay a log of SGLang's scheduler: the part of `replay.py` for configurations with `max_total_tokens`.

Where the real engine stops with an exception or hangs, its log ends without a summary. So does ours;
`Replayed` has the name of the failure and what it is about.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import replay
from ref_sgl import DEFAULTS

from frontier import _frontier

ENGINE_KEYS = {  # of the golden configuration -> of the plan
    "max_total_tokens": "max_total_tokens",
    "max_running_requests": "max_running_requests",
    "context_len": "context_length",
    "chunked_prefill_size": "chunked_prefill_size",
    "max_prefill_tokens": "max_prefill_tokens",
    "policy": "schedule_policy",
    "schedule_conservativeness": "schedule_conservativeness",
    "disable_radix_cache": "disable_radix_cache",
    "eviction_policy": "radix_eviction_policy",
    "mixed_chunk": "enable_mixed_chunk",
    "enable_priority": "enable_priority_scheduling",
    "priority_preemption_threshold": "priority_scheduling_preemption_threshold",
    "low_values_first": "schedule_low_priority_values_first",
}


@dataclass(frozen=True)
class Replayed:
    """The lines of a log, and how the real engine fails there: None where it does not."""

    lines: list[str]
    failure: str | None


def plan(config: dict[str, Any]) -> dict[str, Any]:
    """Return the plan of one replica under a golden-format configuration.

    Raises:
        replay.ReplayError: a key is unknown.

    """
    replay.check_keys(config, (*DEFAULTS, *replay.LABELS), "the configuration")
    config = DEFAULTS | config
    engine = {theirs: config[ours] for ours, theirs in ENGINE_KEYS.items()}
    engine |= {"kind": "sglang", "disable_overlap_schedule": not config["overlap"]}
    return replay.whole_plan(config, engine, block_ids=False)


def named(record: dict[str, Any], ids: list[str]) -> dict[str, Any]:
    """Return a record with request ids in place of request numbers, its keys in the same order."""
    record["sched"] = [[ids[number], *rest] for number, *rest in record["sched"]]
    for key in ("run", "wait", "retract", "out", "fin"):
        if key in record:
            record[key] = [ids[number] for number in record[key]]
    if record["chunked"] is not None:
        record["chunked"] = ids[record["chunked"]]
    return record


def summary(raw: dict[str, Any], requests: list[Any], numbers: list[int]) -> dict[str, Any]:
    """Return the summary record; `numbers[i]` is the simulator's number of `requests[i]`."""
    table = {name: column.tolist() for name, column in raw["requests"].items()}
    rows = {}
    for request, number in zip(requests, numbers, strict=True):
        row = {"arrive": request.arrival_ns, "first": None, "fin": None, "ntok": 0}
        if number < len(table["arrival_ns"]):
            times = {"first": table["first_token_ns"][number], "fin": table["finished_ns"][number]}
            row |= {key: None if time < 0 else time for key, time in times.items()}
            row["ntok"] = table["generated_tokens"][number]
        rows[request.id] = row
    return {"summary": {"requests": rows, "steps": int(raw["totals"]["num_steps"])}}


def replayed(config: dict[str, Any], trace_lines: Iterable[str]) -> Replayed:
    """Return frontier's log, as far as the real engine would get.

    Raises:
        replay.ReplayError: the configuration or the trace is not in the golden format.
        frontier.errors.FrontierError: the simulation refused the plan or failed.

    """
    document = json.dumps(plan(config))
    requests = replay.read_trace(trace_lines)
    order = sorted(range(len(requests)), key=lambda i: requests[i].arrival_ns)  # stable, as the oracle
    arrived = [requests[i] for i in order]
    raw = _frontier.simulate(document, _frontier.Trace(**replay.columns(arrived)))
    ids = [request.id for request in arrived]
    records = [named(json.loads(line), ids) for line in raw["decision_log"].splitlines()]
    if raw["failure"] is None:
        numbers = [0] * len(order)
        for number, i in enumerate(order):
            numbers[i] = number
        records.append(summary(raw, requests, numbers))
    return Replayed([json.dumps(record, separators=(",", ":")) for record in records], raw["failure"])
