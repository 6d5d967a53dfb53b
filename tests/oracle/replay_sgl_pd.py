"""Run a prefill and a decode server of SGLang in the simulator, compare with `ref_sgl_pd`; draw cases.

A case is a configuration and a trace in the golden format: `prefill` and `decode` as in `ref_sgl`, the
latter with `reserved` (`--num-reserved-decode-tokens`) and `polling`
(`--disaggregation-decode-polling-interval`), and the link's `latency` and `per_token` in ns.
"""

import json
from collections.abc import Iterable
from typing import Any

import fuzz_sgl
import ref_sgl_pd
import replay
import replay_sglang
from ref_sgl import DEFAULTS

from frontier import _frontier

BYTES_PER_S = 1e9
"""One byte takes one ns."""
COMPARED = ("step", "ts", "start", "end", "mode", "sched", "wait", "run", "chunked", "avail", "evictable")
COMPARED += ("pf", "dc", "kv", "retract", "out", "fin", "avail_end", "evictable_end")


def plan(config: dict[str, Any]) -> dict[str, Any]:
    """Return the plan of both servers and the link between them."""
    clusters = []
    for name in ("prefill", "decode"):
        part = {key: value for key, value in config[name].items() if key not in ("reserved", "polling")}
        whole = replay_sglang.plan(part)
        (cluster,) = whole["clusters"]
        cluster["name"] = name
        cluster["scheduler"]["disaggregation"] = (
            {"mode": "prefill"}
            if name == "prefill"
            else {
                "mode": "decode",
                "num_reserved_decode_tokens": config[name]["reserved"],
                "polling_interval": config[name]["polling"],
            }
        )
        clusters.append(cluster)
    clusters[1]["scheduler"]["disable_radix_cache"] = True
    leg = {"weights": [1.0], "balance": "weighted", "encodes": None}
    handover = {
        "mode": "push",
        "granularity": config["granularity"],
        "first_token": "carried",
        "proxy_latency_ns": 0,
        "latency_ns": config["latency"],
        "bytes_per_block": config["per_token"],
        "fixed_bytes": 0,
        "num_layers": 1,
        "transport": {"kind": "dedicated", "bytes_per_s": BYTES_PER_S},
    }
    path = {
        "legs": [
            leg | {"clusters": [0], "receives": None},
            leg | {"clusters": [1], "receives": handover},
        ],
        "direct": None,
    }
    return whole | {"clusters": clusters, "paths": [path]}


def simulated(config: dict[str, Any], trace: Iterable[str]) -> dict[str, Any]:
    """Return what the simulator does: records of both servers, events, requests, and its failure."""
    requests = replay.read_trace(trace)
    order = sorted(range(len(requests)), key=lambda i: requests[i].arrival_ns)
    arrived = [requests[i] for i in order]
    raw = _frontier.simulate(json.dumps(plan(config)), _frontier.Trace(**replay.columns(arrived)))
    ids = [request.id for request in arrived]
    logs: dict[str, list[Any]] = {"e0": [], "e1": []}
    events: list[Any] = []
    for line in raw["decision_log"].splitlines():
        record = json.loads(line)
        if "reserve" in record:
            events.append(["reserve", record["ts"], ids[record["reserve"]]])
        elif "carried" in record:
            events.append(["carried", record["ts"], [ids[number] for number in record["carried"]]])
        elif "sched" in record:
            named = replay_sglang.named(record, ids)
            logs[record["eng"]].append({key: named[key] for key in COMPARED if key in named})
    numbers = {request.id: number for number, request in enumerate(arrived)}
    summary = replay_sglang.summary(raw, requests, [numbers[request.id] for request in requests])
    return {
        "prefill": logs["e0"],
        "decode": logs["e1"],
        "events": events,
        "requests": summary["summary"]["requests"],
        "failure": raw["failure"],
    }


def restated(config: dict[str, Any], trace: list[str]) -> dict[str, Any]:
    """Return what the restatement does, in the same form."""
    requests = sorted(ref_sgl_pd.parse_trace(trace), key=lambda request: request["t"])
    try:
        prefill, decode, events, rows = ref_sgl_pd.run(config, requests)
    except ref_sgl_pd.Refused as refused:
        return {"failure": str(refused)}
    shown = [
        [{key: record[key] for key in COMPARED if key in record} for record in log]
        for log in (prefill, decode)
    ]
    return {"prefill": shown[0], "decode": shown[1], "events": events, "requests": rows, "failure": None}


def difference(config: dict[str, Any], trace: list[str]) -> str | None:
    """Return the first difference between simulator and restatement, None where there is none."""
    ours, theirs = simulated(config, trace), restated(config, trace)
    if (ours["failure"] is None) != (theirs["failure"] is None):
        return f"we end with {ours['failure']!r}, the restatement with {theirs['failure']!r}"
    if theirs["failure"] is not None:
        return None
    for result in (ours, theirs):
        # Within one instant, the simulator tells what a turn let in before what it gave memory to.
        result["reserve"], result["carried"] = (
            [event for event in result["events"] if event[0] == kind] for kind in ("reserve", "carried")
        )
    for part in ("reserve", "carried", "prefill", "decode"):
        for number, (mine, other) in enumerate(zip(ours[part], theirs[part], strict=False)):
            if mine != other:
                return f"{part} {number}: ours {mine}, theirs {other}"
        if len(ours[part]) != len(theirs[part]):
            return f"{part}: ours has {len(ours[part])}, theirs {len(theirs[part])}"
    for name, row in theirs["requests"].items():
        if ours["requests"][name] != row:
            return f"request {name}: ours {ours['requests'][name]}, theirs {row}"
    return None


def drawn(seed: int, k: int) -> tuple[dict[str, Any], list[str]]:
    """Return case `k` of a seed."""
    r = fuzz_sgl.R(seed * 1_000_003 + k)
    longest, output = r.c([8, 40, 120, 300]), r.c([1, 4, 15, 40, 90])
    rows, lengths = fuzz_sgl.trace(r, longest, output, False, 3)
    reserved = r.c([0, 0, 1, 8, 40, 100])
    need = max(n + max(x[2], reserved) for n, x in zip(lengths, rows, strict=True)) + 2
    config: dict[str, Any] = {
        "granularity": r.c(["chunk", "chunk", "request"]),
        "latency": r.i(0, 2_000_000),
        "per_token": r.i(1, r.c([100, 10_000, 200_000])),
    }
    for name in ("prefill", "decode"):
        config[name] = DEFAULTS | {
            "max_total_tokens": need + r.i(0, need * r.c([0, 1, 2, 8])),
            "max_running_requests": r.c([1, 2, 4, 8, 16, 40]),
            "overlap": r.p(60),
            "clock": {
                "a": r.i(1, 5_000_000),
                "b": r.i(0, 60_000),
                "c": r.i(0, 200_000),
                "d": r.i(0, 300),
                "e": r.i(0, 60_000),
            },
        }
    config["prefill"] |= {
        "chunked_prefill_size": r.c([None, 16, 24, 48, 100, 256, 2048]),
        "max_prefill_tokens": r.c([30, 100, 400, 16384, 16384]),
        "policy": r.c(["fcfs", "fcfs", "lpm", "dfs-weight", "lof"]),
        "disable_radix_cache": r.p(30),
    }
    config["decode"] |= {"reserved": reserved, "polling": r.c([1, 1, 1, 2, 3])}
    return config, fuzz_sgl.lines(rows)
