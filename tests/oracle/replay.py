"""Replay a scheduler log: run frontier's scheduler on a golden-format configuration and trace.

    replay.py CONFIG.json TRACE.csv OUT.jsonl

OUT.jsonl has the golden format (`tests/golden/README.md`), so it can be compared line by line with a log of
the real engine; only the last line of a golden log carries more keys than `summary`. A configuration with
`max_total_tokens` is one of SGLang's (`replay_sglang.py`), any other one of vLLM's. Where the real SGLang
hangs or stops with an exception, OUT.jsonl ends without a summary, as its log does, and the failure is named
on standard error.

Exit status: 0 done; 1 the configuration or the trace is wrong, or the simulation failed; 2 the configuration
asks for a feature that frontier does not simulate yet.
"""

import argparse
import csv
import difflib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ref_sched import DEFAULTS

from frontier import _frontier
from frontier.errors import FrontierError

COLUMNS = ("request_id", "arrival_ns", "prompt", "output_len", "priority")
LABELS = ("name", "model")  # say where a case comes from; the scheduler never sees them
SCHEDULER_KEYS = (
    "block_size",
    "num_blocks",
    "max_model_len",
    "max_num_batched_tokens",
    "max_num_scheduled_tokens",
    "max_num_seqs",
    "max_num_active_seqs",
    "long_prefill_token_threshold",
    "long_prefill_token_threshold_adaptive",
    "enable_chunked_prefill",
    "enable_prefix_caching",
    "policy",
    "scheduler_reserve_full_isl",
    "watermark",
    "async_scheduling",
    "pipeline_parallel_size",
    "v2_runner",
)
SPEC_KEYS = ("method", "k", "accept_permille", "seed", "draft_len")
FIRST, LAST = 11, 32  # minor versions of vLLM
CLOCK_KEYS = {
    "a": "per_step_ns",
    "b": "per_prefill_token_ns",
    "c": "per_seq_ns",
    "d": "per_kv_token_ns",
    "e": "per_decode_token_ns",
}
U32_MAX = (1 << 32) - 1
NEVER_SAMPLE_NS = 10**15


class ReplayError(ValueError):
    """The configuration or the trace is not in the golden format."""


class UnsupportedError(ReplayError):
    """The configuration asks for a feature that frontier does not simulate yet."""


@dataclass(frozen=True)
class Request:
    """One row of a trace; `segments` are (stream name, first position, tokens)."""

    id: str
    arrival_ns: int
    output_tokens: int
    priority: int
    segments: tuple[tuple[str, int, int], ...]


def check_keys(given: Iterable[str], known: Iterable[str], path: str) -> None:
    for key in given:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; known are {', '.join(known)}"
            raise ReplayError(f"{path} has the unknown key {key!r}{hint}")


def minor_version(config: dict[str, Any]) -> int:
    """Return N of the version 0.N whose rules a configuration asks for."""
    version = str(config.get("vllm", "0.32"))
    parts = version.split(".")
    if len(parts) < 2 or parts[0] != "0" or not parts[1].isdigit() or not FIRST <= int(parts[1]) <= LAST:
        raise UnsupportedError(
            f"this version of frontier does not simulate the rules of vLLM {version} (0.{FIRST} to 0.{LAST})"
        )
    return int(parts[1])


def check_supported(config: dict[str, Any]) -> None:
    if config.get("mode", "colocated") not in ("colocated", "pd"):
        raise UnsupportedError(f"this version of frontier does not simulate `mode` {config.get('mode')!r}")


def speculative(spec: dict[str, Any] | None, request_numbers: list[int]) -> dict[str, Any] | None:
    """Return the plan's speculative decoding; `request_numbers`: place in the file of each, by arrival."""
    if not spec:
        return None
    check_keys(spec, SPEC_KEYS, "`spec`")
    if missing := [key for key in SPEC_KEYS[:4] if key not in spec]:
        raise ReplayError(f"`spec` lacks {', '.join(missing)}")
    draws = {"seed": spec["seed"], "request_numbers": request_numbers}
    lengths = {"full": {"kind": "full"}, "hash": {"kind": "replay", **draws}}
    draft_len = spec.get("draft_len", "full")
    if draft_len not in lengths:
        raise ReplayError(f"`spec.draft_len` was {draft_len!r}, must be one of {', '.join(lengths)}")
    return {
        "method": spec["method"],
        "num_speculative_tokens": spec["k"],
        "draft_length": lengths[draft_len],
        "acceptance": {"kind": "replay", "accept_permille": spec["accept_permille"], "draws": draws},
        "seed": 0,
        "replication": 0,
    }


def plan(config: dict[str, Any], request_numbers: list[int]) -> dict[str, Any]:
    """Return the plan of one replica under a golden-format configuration.

    `request_numbers`: the place in the trace of each request, in order of arrival.

    Raises:
        ReplayError: a key is unknown or missing.
        UnsupportedError: a feature is not simulated yet.

    """
    check_keys(config, (*DEFAULTS, "num_blocks", "mode", "pd", "vllm", *LABELS), "the configuration")
    if "num_blocks" not in config:
        raise ReplayError(
            "the configuration lacks `num_blocks` (KV blocks in total, the null block included)"
        )
    config = DEFAULTS | config
    check_supported(config)
    scheduler = {key: config[key] for key in SCHEDULER_KEYS}
    scheduler |= {
        "kind": "vllm_v1",
        "kv_group_windows": [],
        "minor_version": minor_version(config),
        "speculative": speculative(config["spec"], request_numbers),
    }
    for limit in ("max_num_scheduled_tokens", "max_num_active_seqs"):  # 0 means unset, as in the engine
        scheduler[limit] = scheduler[limit] or None
    return whole_plan(config, scheduler, block_ids=config["log_block_ids"])


def whole_plan(config: dict[str, Any], scheduler: dict[str, Any], *, block_ids: bool) -> dict[str, Any]:
    """Return the plan of one replica with this scheduler, and a configuration's clock and step limit."""
    clock = {"e": 0} | config["clock"]
    check_keys(clock, CLOCK_KEYS, "`clock`")
    if missing := [key for key in CLOCK_KEYS if key not in clock]:
        raise ReplayError(f"`clock` lacks {', '.join(missing)}")
    return {
        "schema_version": _frontier.PLAN_SCHEMA_VERSION,
        "seed": 0,
        "replication": 0,
        "clusters": [
            {
                "name": "serve",
                "replicas": 1,
                "router": {"policy": "round_robin"},
                "scheduler": scheduler,
                "step_time": {"kind": "linear"} | {name: clock[key] for key, name in CLOCK_KEYS.items()},
            }
        ],
        "workload": {"kind": "trace", "arrivals": None, "num_requests": None},
        "output": {
            "steps": False,
            "timeline_interval_ns": NEVER_SAMPLE_NS,
            "decision_log": {"block_ids": block_ids},
        },
        "limits": {"max_steps": config["max_steps"], "refuse_oversized": False, "livelock_steps": None},
    }


def integer(text: str | None, least: int, most: int, what: str) -> int:
    try:
        value = int(text or "")
    except ValueError:
        raise ReplayError(f"{what} was {text!r}, must be a whole number") from None
    if not least <= value <= most:
        raise ReplayError(f"{what} was {value}, must be in {least} ..= {most}")
    return value


def segments(prompt: str, where: str) -> Iterator[tuple[str, int, int]]:
    """Parse `stream:len[@start]|...`, leaving out empty segments."""
    for text in prompt.split("|"):
        body, _, start = text.rpartition("@") if "@" in text else (text, "", "0")
        name, colon, length = body.rpartition(":")
        if not colon:
            raise ReplayError(f"{where}: segment {text!r} must read stream:len or stream:len@start")
        tokens = integer(length, 0, U32_MAX, f"{where}: length of segment {text!r}")
        first = integer(start, 0, U32_MAX, f"{where}: start of segment {text!r}")
        if tokens:
            yield name, first, tokens


def read_trace(lines: Iterable[str]) -> list[Request]:
    """Parse the lines of a trace, in file order.

    Raises:
        ReplayError: names the line and the value that cannot be read.

    """
    reader, requests, ids = csv.DictReader(lines), [], set()
    if missing := [name for name in COLUMNS[:4] if name not in (reader.fieldnames or ())]:
        raise ReplayError(f"line 1: the header lacks {', '.join(missing)}")
    for row in reader:
        where = f"line {reader.line_num}"
        request = Request(
            id=row["request_id"],
            arrival_ns=integer(row["arrival_ns"], 0, (1 << 63) - 1, f"{where}: arrival_ns"),
            output_tokens=integer(row["output_len"], 1, U32_MAX, f"{where}: output_len"),
            priority=integer(row.get("priority") or "0", -(1 << 31), (1 << 31) - 1, f"{where}: priority"),
            segments=tuple(segments(row["prompt"] or "", f"{where}: prompt")),
        )
        if not request.segments:
            raise ReplayError(f"{where}: the prompt {row['prompt']!r} is empty")
        if request.id in ids:
            raise ReplayError(f"{where}: request_id {request.id!r} stands in an earlier line too")
        ids.add(request.id)
        requests.append(request)
    return requests


def columns(requests: list[Request]) -> dict[str, Any]:
    """Return the columns of `_frontier.Trace` for requests sorted by arrival.

    Named streams are numbered from 1 as they appear; `o:<id>` is the output stream of that request. Priority
    ties compare ids as strings, hence `tie_rank`.
    """
    index = {request.id: i for i, request in enumerate(requests)}
    streams = {f"o:{rid}": _frontier.OUTPUT_STREAM_BASE + i for rid, i in index.items()}
    flat = [segment for request in requests for segment in request.segments]
    for name, _, _ in flat:
        streams.setdefault(name, len(streams) - len(index) + 1)
    rank = {rid: i for i, rid in enumerate(sorted(index))}
    return {
        "arrival_ns": np.array([r.arrival_ns for r in requests], np.int64),
        "prompt_tokens": np.array([sum(n for _, _, n in r.segments) for r in requests], np.uint32),
        "output_tokens": np.array([r.output_tokens for r in requests], np.uint32),
        "priority": np.array([r.priority for r in requests], np.int32),
        "segment_offsets": np.cumsum([0, *(len(r.segments) for r in requests)]).astype(np.uint64),
        "segment_stream": np.array([streams[name] for name, _, _ in flat], np.uint64),
        "segment_start": np.array([start for _, start, _ in flat], np.uint32),
        "segment_length": np.array([tokens for _, _, tokens in flat], np.uint32),
        "tie_rank": np.array([rank[r.id] for r in requests], np.uint32),
    }


def named(record: dict[str, Any], ids: list[str]) -> dict[str, Any]:
    """Return a record with request ids in place of request numbers, its keys in the same order."""
    record["sched"] = [[ids[number], *rest] for number, *rest in record["sched"]]
    for key in ("pre", "run", "wait", "fin"):
        if key in record:
            record[key] = [ids[number] for number in record[key]]
    for key in ("hit", "blk", "out"):
        if key in record:
            record[key] = {ids[int(number)]: value for number, value in record[key].items()}
    return record


def summary(raw: dict[str, Any], requests: list[Request], numbers: list[int]) -> dict[str, Any]:
    """Return the summary record; `numbers[i]` is the simulator's number of `requests[i]`.

    A run that stops at `max_steps` has no rows for requests that had yet to arrive.
    """
    table = {name: column.tolist() for name, column in raw["requests"].items()}
    rows = {}
    for request, number in zip(requests, numbers, strict=True):
        row = {"arrive": request.arrival_ns, "first": None, "fin": None, "ntok": 0, "cached": None, "npre": 0}
        if number < len(table["arrival_ns"]):
            times = {"first": table["first_token_ns"][number], "fin": table["finished_ns"][number]}
            row |= {key: None if time < 0 else time for key, time in times.items()}
            row["ntok"] = table["generated_tokens"][number]
            if table["scheduled_ns"][number] >= 0:
                row["cached"] = table["cached_tokens"][number]
            row["npre"] = table["preemptions"][number]
        rows[request.id] = row
    engine = {
        "requests": rows,
        "steps": int(raw["totals"]["num_steps"]),
        "empty_steps": int(raw["totals"]["num_empty_steps"]),
        "unfinished": [rid for rid, row in rows.items() if row["fin"] is None],
    }
    return {"summary": {"e0": engine}}


def replay(config: dict[str, Any], trace_lines: Iterable[str]) -> list[str]:
    """Return the lines of frontier's log, of the engine that the configuration is for."""
    if config.get("mode") == "pd":
        # Run as a script, this module has another name, yet its errors are the same ones.
        sys.modules.setdefault("replay", sys.modules[__name__])
        import replay_pd

        return replay_pd.replay_pd(config, trace_lines)
    engine = next((engine for key, engine in ENGINE_OF_KEY.items() if key in config), replay_vllm)
    return engine(config, trace_lines)


def replay_vllm(config: dict[str, Any], trace_lines: Iterable[str]) -> list[str]:
    """Return the lines of frontier's log as vLLM.

    Raises:
        ReplayError: the configuration or the trace is not in the golden format.
        frontier.errors.FrontierError: the simulation refused the plan or failed.

    """
    requests = read_trace(trace_lines)
    order = sorted(
        range(len(requests)), key=lambda i: requests[i].arrival_ns
    )  # stable, as the engine's inbox
    document = json.dumps(plan(config, order))
    arrived = [requests[i] for i in order]
    raw = _frontier.simulate(document, _frontier.Trace(**columns(arrived)))
    ids = [request.id for request in arrived]
    records = [named(json.loads(line), ids) for line in raw["decision_log"].splitlines()]
    numbers = [0] * len(order)
    for number, i in enumerate(order):
        numbers[i] = number
    records.append(summary(raw, requests, numbers))
    return [json.dumps(record, separators=(",", ":")) for record in records]


def replay_sglang(config: dict[str, Any], trace_lines: Iterable[str]) -> list[str]:
    """Return the lines of frontier's log as SGLang; where the real engine fails, say how."""
    # Run as a script, this module has another name, yet its errors are the same ones.
    sys.modules.setdefault("replay", sys.modules[__name__])
    import replay_sglang as sglang

    outcome = sglang.replayed(config, trace_lines)
    if outcome.failure is not None:
        print(f"replay.py: {outcome.failure}", file=sys.stderr)
    return outcome.lines


ENGINE_OF_KEY: dict[str, Callable[[dict[str, Any], Iterable[str]], list[str]]] = {
    "max_total_tokens": replay_sglang
}
"""Keys that only another engine's configurations have, and how it is replayed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("config", metavar="CONFIG.json", type=Path)
    parser.add_argument("trace", metavar="TRACE.csv", type=Path)
    parser.add_argument("out", metavar="OUT.jsonl", type=Path)
    arguments = parser.parse_args()
    try:
        config = json.loads(arguments.config.read_text(encoding="utf-8"))
        with arguments.trace.open(encoding="utf-8", newline="") as file:
            lines = replay(config, file)
        arguments.out.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    except (FrontierError, ReplayError, OSError, json.JSONDecodeError) as error:
        print(f"replay.py: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UnsupportedError) else 1)


if __name__ == "__main__":
    main()
