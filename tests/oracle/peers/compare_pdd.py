"""Run the disaggregated cases of `adapt_pdd.py` through frontier: batches, transfers and times of requests.

compare_pdd.py ARCHIVE.tar.xz [NAME ...]    print a table
"""

import argparse
import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import compare
import golden_archive

from frontier import _frontier

ROLES = ("prefill", "decode")


@dataclass
class PddOutcome:
    """How a disaggregated case compares.

    Attributes:
        clusters: batches of each role.
        transfers: requests of the peer.
        transfers_equal: those whose KV leaves and is there at the same times.
        transfer_error: largest relative difference of these times, and of TTFT, among all.
        served: requests that end before the first batch that differs.
        served_equal: those of them with equal times of the last token and between tokens.
        served_error: largest relative difference of these times.
    """

    clusters: dict[str, compare.Outcome] = field(default_factory=dict)
    transfers: int = 0
    transfers_equal: int = 0
    transfer_error: float = 0.0
    served: int = 0
    served_equal: int = 0
    served_error: float = 0.0


def path_of(handover: dict[str, Any], block_size: int) -> dict[str, Any]:
    leg = {"weights": [1.0], "balance": "weighted", "encodes": None}
    receives = {
        "mode": "buffer",
        "granularity": "request",
        "first_token": "recomputed",
        "proxy_latency_ns": 0,
        "latency_ns": handover["latency_ns"],
        "bytes_per_block": handover["bytes_per_token"] * block_size,
        "fixed_bytes": 0,
        "num_layers": 1,
        "transport": {"kind": "dedicated", "bytes_per_s": handover["bytes_per_s"]},
    }
    return {
        "legs": [
            leg | {"clusters": [0], "receives": None},
            leg | {"clusters": [1], "receives": receives},
        ],
        "direct": None,
    }


def compare_pdd(config: dict[str, Any], trace: list[str], log: list[str], *, tolerance: float) -> PddOutcome:
    """Run a case and compare both clusters' batches, transfers and times of requests with the peer's.

    Times are equal if they differ by no more than `tolerance`, relatively.
    """
    rows = list(csv.DictReader(trace))
    lines = [json.loads(line) for line in log]
    clusters = [
        {"name": role} | {key: config[role][key] for key in ("scheduler", "step_time")} for role in ROLES
    ]
    path = path_of(config["handover"], config["prefill"]["scheduler"]["block_size"])
    raw = _frontier.simulate(json.dumps(compare.plan_of(clusters, path)), compare.trace_of(rows))
    records = [json.loads(line) for line in raw["decision_log"].splitlines()]
    found = PddOutcome()
    until_s = float("inf")
    for number, role in enumerate(ROLES):
        ours = [record for record in records if record["eng"] == f"e{number}" and record.get("sched")]
        theirs = [line[1:] for line in lines if isinstance(line, list) and line[0] == number]
        outcome = found.clusters[role] = compare.Outcome(batches=len(theirs))
        numbers = list(range(len(rows)))
        blocks = config[role]["blocks"]
        if not compare.compare_replica(outcome, blocks, numbers, ours, theirs, ordered=False):
            until_s = min(until_s, theirs[min(outcome.equal, len(theirs) - 1)][0])
    requests = {line["request"]: line for line in lines if isinstance(line, dict)}
    compare_requests(found, raw, rows, requests, until_s=until_s, tolerance=tolerance)
    return found


def compare_requests(
    found: PddOutcome,
    raw: dict[str, Any],
    rows: list[dict[str, str]],
    peer: dict[int, Any],
    *,
    until_s: float,
    tolerance: float,
) -> None:
    def error(pairs: list[tuple[float, float]]) -> float:
        return max(abs(float(ours_ns) / 1e9 / theirs_s - 1) for ours_ns, theirs_s in pairs)

    transfers, requests = raw["transfers"], raw["requests"]
    assert (requests["finished_ns"] >= 0).all(), "a request was lost"
    assert len(rows) == len(transfers["request"]) == len(peer)
    for row, request in enumerate(transfers["request"]):
        theirs = peer[int(request)]
        arrival_ns = requests["arrival_ns"][request]
        times = [transfers[key][row] for key in ("start_ns", "end_ns")]
        ttft = (transfers["ready_ns"][row] - arrival_ns, theirs["ttft"])
        difference = error([*zip(times, theirs["transfer"], strict=True), ttft])
        found.transfers += 1
        found.transfers_equal += difference <= tolerance
        found.transfer_error = max(found.transfer_error, difference)
        if theirs["end"] > until_s:
            continue
        first, end = (requests[key][request] for key in ("first_token_ns", "finished_ns"))
        pairs = [(end, theirs["end"])]
        gaps = int(rows[request]["num_decode_tokens"]) - 1
        if gaps:
            pairs.append(((end - first) / gaps, theirs["tpot"]))
        difference = error(pairs)
        found.served += 1
        found.served_equal += difference <= tolerance
        found.served_error = max(found.served_error, difference)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    for name, case in golden_archive.cases(arguments.archive).items():
        if "prefill" not in case.config or not name.startswith(tuple(arguments.names or [""])):
            continue
        found = compare_pdd(case.config, case.trace, case.log, tolerance=1e-6)
        batches = ", ".join(f"{role} {one.equal}/{one.batches}" for role, one in found.clusters.items())
        error = max(one.time_error for one in found.clusters.values())
        print(
            f"{name:45} batches: {batches}, time error {error:.1e};"
            f" transfers {found.transfers_equal}/{found.transfers}, {found.transfer_error:.1e};"
            f" requests {found.served_equal}/{found.served}, {found.served_error:.1e}"
        )
        for role, one in found.clusters.items():
            if one.first_difference:
                print(f"    {role}: {' | '.join(one.first_difference)}")


if __name__ == "__main__":
    main()
