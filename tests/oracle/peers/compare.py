"""Run the peers' co-located golden cases through frontier and compare batch by batch.

compare.py ARCHIVE.tar.xz [NAME ...]    print a table: batches equal, largest relative error of times, remarks
"""

import argparse
import csv
import json
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from frontier import _frontier

sys.path.insert(0, str(Path(__file__).parents[2] / "golden"))
import golden_archive

BLOCK = 16


@dataclass
class Outcome:
    """How a case compares.

    Attributes:
        batches: batches of the peer.
        equal: those that are equal in requests, tokens and order of formation, up to the first that is not.
        blocks_equal: batches with as many blocks held, of those that say.
        time_error: largest relative difference of a start or a duration among the equal ones.
        first_difference: what the first unequal batch was, empty if all are equal.
    """

    batches: int = 0
    equal: int = 0
    blocks: int = 0
    blocks_equal: int = 0
    time_error: float = 0.0
    first_difference: list[str] = field(default_factory=list)


def scheduler_plan(given: dict[str, Any]) -> dict[str, Any]:
    """Return the plan's scheduler: what the peer was asked for; what vLLM V1 has beyond is off."""
    if given["kind"] != "vllm_v1":
        return given
    asked = {name: value for name, value in given.items() if name != "num_lookahead_tokens"}
    return asked | {
        "minor_version": 32,
        "kv_group_windows": [],
        "pipeline_parallel_size": 1,
        "v2_runner": False,
        "speculative": None,
    }


def trace_of(requests: list[dict[str, str]]) -> _frontier.Trace:
    arrivals = [round(float(row["arrived_at"]) * 1e9) for row in requests]
    columns: dict[str, Any] = {}
    if "block_hash_ids" in requests[0]:
        streams, starts, lengths, offsets = [], [], [], [0]
        for row in requests:
            ids = [int(part) for part in row["block_hash_ids"].split("|")]
            left = int(row["num_prefill_tokens"])
            for hash_id in ids:
                take = min(BLOCK, left)
                if take:
                    streams.append(hash_id)
                    starts.append(0)
                    lengths.append(take)
                left -= take
            assert left == 0
            offsets.append(len(streams))
        columns = {
            "segment_offsets": np.array(offsets, dtype=np.uint64),
            "segment_stream": np.array(streams, dtype=np.uint64),
            "segment_start": np.array(starts, dtype=np.uint32),
            "segment_length": np.array(lengths, dtype=np.uint32),
        }
    return _frontier.Trace(
        np.array(arrivals, dtype=np.int64),
        np.array([int(row["num_prefill_tokens"]) for row in requests], dtype=np.uint32),
        np.array([int(row["num_decode_tokens"]) for row in requests], dtype=np.uint32),
        **columns,
    )


def plan_of(clusters: list[dict[str, Any]], path: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the plan of clusters of one replica each: `name`, `scheduler` and `step_time` of each."""
    one = {"replicas": 1, "router": {"policy": "round_robin"}}
    return {
        "schema_version": _frontier.PLAN_SCHEMA_VERSION,
        "seed": 0,
        "replication": 0,
        "clusters": [
            one | cluster | {"scheduler": scheduler_plan(cluster["scheduler"])} for cluster in clusters
        ],
        "paths": [] if path is None else [path],
        "workload": {"kind": "trace", "arrivals": None, "num_requests": None},
        "output": {"steps": False, "timeline_interval_ns": 10**15, "decision_log": {"block_ids": False}},
        "limits": {"max_steps": None, "refuse_oversized": True, "livelock_steps": 100_000},
    }


def simulate(config: dict[str, Any], requests: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Return the records of one replica that serves these requests."""
    serve = {"name": "serve", "scheduler": config["scheduler"], "step_time": config["step_time"]}
    raw = _frontier.simulate(json.dumps(plan_of([serve])), trace_of(requests))
    finished = raw["requests"].get("finished_ns")
    assert finished is None or (finished >= 0).all(), "a request was lost"
    return [json.loads(line) for line in raw["decision_log"].splitlines()]


def compare(config: dict[str, Any], trace: list[str], log: list[str], *, ordered: bool) -> Outcome:
    """Run a case and compare its batches with the peer's, replica by replica."""
    requests = list(csv.DictReader(trace))
    peer: dict[int, list[Any]] = defaultdict(list)
    for line in log:
        replica, *batch = json.loads(line)
        peer[replica].append(batch)
    outcome = Outcome()
    for replica in sorted(peer):
        served = sorted({int(pair.split(":")[0]) for batch in peer[replica] for pair in batch[2].split()})
        if len(peer) == 1:
            served = list(range(len(requests)))
        ours = [record for record in simulate(config, [requests[i] for i in served]) if record["sched"]]
        same = compare_replica(outcome, config["blocks"], served, ours, peer[replica], ordered=ordered)
        outcome.batches += len(peer[replica])
        if not same:
            break
    return outcome


def free_blocks_at_starts(records: list[dict[str, Any]]) -> list[int]:
    """Return the free blocks when each batch starts: in a pipeline, others are formed and end before that."""
    found, changes = [], []
    for number, record in enumerate(records):
        changes.append((record["ts"], 1, number, record["free"]))
        changes.append((record["end"], 0, number, record["free_end"]))
    changes.sort()
    position = 0
    for record in records:
        while position < len(changes) and changes[position][0] <= record["start"]:
            # A batch that starts when its output is there held its blocks; ends of others come before.
            position += 1
        found.append(changes[position - 1][3])
    return found


def compare_replica(
    outcome: Outcome, blocks: int, served: list[int], ours: list[Any], peers: list[Any], *, ordered: bool
) -> bool:
    key = list if ordered else sorted
    free_at_start = free_blocks_at_starts(ours)
    for number, (record, (start_s, duration_s, members, held)) in enumerate(zip(ours, peers, strict=False)):
        batch = [f"{served[entry[0]]}:{entry[3]}" for entry in record["sched"]]
        if key(batch) != key(members.split()):
            outcome.first_difference = [f"batch {number}", " ".join(batch), members]
            return False
        outcome.equal += 1
        if held is not None:
            outcome.blocks += 1
            outcome.blocks_equal += blocks - free_at_start[number] == held
        for our_ns, peer_s in ((record["start"], start_s), (record["end"] - record["start"], duration_s)):
            if peer_s > 0:
                outcome.time_error = max(outcome.time_error, abs(our_ns / 1e9 / peer_s - 1))
    if len(ours) != len(peers):
        outcome.first_difference = [f"{len(ours)} batches", "", f"{len(peers)} batches"]
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("archive", type=Path)
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    cases = golden_archive.cases(arguments.archive)
    for name, case in cases.items():
        if "prefill" in case.config or not name.startswith(tuple(arguments.names or [""])):
            continue  # disaggregated cases: compare_pdd.py
        found = compare(case.config, case.trace, case.log, ordered=name.startswith("v"))
        total = len(case.log)
        print(
            f"{name:45} {found.equal}/{total} batches, {found.blocks_equal}/{found.blocks} block counts,"
            f" time error {found.time_error:.1e} {' | '.join(found.first_difference)}"
        )


if __name__ == "__main__":
    main()
