"""Replay a log of disaggregated prefill and decode: one engine P that computes prompts, and one engine D.

D reads the KV of a prompt once it has blocks for it; `pd.transfer` says how long that takes, and `serial`
whether all transfers pass one link.
"""

import json
from collections.abc import Iterable
from typing import Any

import replay

from frontier import _frontier

ENGINES = ("P", "D")
UNSHARED_BYTES_PER_S = 1e9
"""Bandwidth of a link that only one transfer passes: one byte takes one ns."""
NOTHING_YET = {"first": None, "fin": None, "ntok": 0, "cached": None, "npre": 0}
PD_KEYS = ("prefill", "decode", "transfer", "proxy_latency")
TRANSFER_KEYS = ("alpha", "per_block", "serial")


def plan(config: dict[str, Any], request_numbers: list[int]) -> dict[str, Any]:
    """Return the plan of both engines and the link between them."""
    pd = config["pd"]
    replay.check_keys(pd, PD_KEYS, "`pd`")
    transfer = {"serial": False} | pd["transfer"]
    replay.check_keys(transfer, TRANSFER_KEYS, "`pd.transfer`")
    both = {key: value for key, value in config.items() if key not in ("pd", "mode")}
    parts = [replay.plan(both | pd.get(role, {}), request_numbers) for role in ("prefill", "decode")]
    clusters = [part["clusters"][0] | {"name": name} for part, name in zip(parts, ENGINES, strict=True)]
    per_block = transfer["per_block"]
    transport = (
        {"kind": "serial", "ns_per_block": per_block}
        if transfer["serial"]
        else {"kind": "dedicated", "bytes_per_s": UNSHARED_BYTES_PER_S}
    )
    leg = {"weights": [1.0], "balance": "weighted", "encodes": None}
    handover = {
        "mode": "pull",
        "granularity": "request",
        "first_token": "recomputed",
        "proxy_latency_ns": pd.get("proxy_latency", 0),
        "latency_ns": transfer["alpha"],
        "bytes_per_block": per_block,
        "fixed_bytes": 0,
        "num_layers": 1,
        "transport": transport,
    }
    path = {
        "legs": [
            leg | {"clusters": [0], "receives": None},
            leg | {"clusters": [1], "receives": handover},
        ],
        "direct": None,
    }
    return parts[0] | {"clusters": clusters, "paths": [path]}


def named(record: dict[str, Any], ids: list[str]) -> dict[str, Any]:
    """Return a record with names in place of numbers, lists of transfers in the order of names."""
    record["eng"] = ENGINES[int(record["eng"][1:])]
    if "sched" in record:
        replay.named(record, ids)
    if "kv_wait" in record:
        record["kv_wait"] = [ids[number] for number in record["kv_wait"]]
    if "xfer" in record:
        record["xfer"] = ids[record["xfer"]]
    for key in ("recv", "sent"):
        if key in record:
            record[key] = sorted(ids[number] for number in record[key])
    return record


def summary(
    records: list[dict[str, Any]], requests: list[replay.Request], config: dict[str, Any], raw: dict[str, Any]
) -> dict[str, Any]:
    """Return the summary of both engines, read off their records."""
    engines = {}
    arrivals = {request.id: request.arrival_ns for request in requests}
    for name, cluster in zip(ENGINES, raw["clusters"], strict=True):
        rows = {
            request.id: {
                "arrive": arrivals[request.id],
                "first": None,
                "fin": None,
                "ntok": 0,
                "cached": None,
                "npre": 0,
            }
            for request in requests
            if request.id in arrivals
        }
        for record in (record for record in records if record["eng"] == name and "sched" in record):
            for rid in record.get("pre", ()):
                rows[rid]["npre"] += 1
            for rid, hit in record.get("hit", {}).items():
                if rows[rid]["cached"] is None:
                    rows[rid]["cached"] = hit
            for rid, count in record.get("out", {}).items():
                row = rows[rid]
                row["first"] = record["end"] if row["first"] is None else row["first"]
                row["ntok"] += count
            for rid in record.get("fin", ()):
                rows[rid]["fin"] = record["end"]
        engines[name] = {
            "requests": rows,
            "steps": cluster["num_steps"],
            "empty_steps": cluster["num_empty_steps"],
            "unfinished": [rid for rid, row in rows.items() if row["fin"] is None],
        }
        after = config["pd"].get("proxy_latency", 0)
        arrivals = {rid: row["fin"] + after for rid, row in rows.items() if row["fin"] is not None}
    return {"summary": engines}


def replay_pd(config: dict[str, Any], trace_lines: Iterable[str]) -> list[str]:
    """Return the lines of frontier's log.

    Raises:
        ReplayError: the configuration or the trace is not in the golden format.
        frontier.errors.FrontierError: the simulation refused the plan or failed.

    """
    requests = replay.read_trace(trace_lines)
    order = sorted(range(len(requests)), key=lambda i: requests[i].arrival_ns)
    document = json.dumps(plan(config, order))
    arrived = [requests[i] for i in order]
    raw = _frontier.simulate(document, _frontier.Trace(**replay.columns(arrived)))
    ids = [request.id for request in arrived]
    records = [named(json.loads(line), ids) for line in raw["decision_log"].splitlines()]
    records.append(summary(records, requests, config, raw))
    return [json.dumps(record, separators=(",", ":")) for record in records]
