"""Turn Frontier's disaggregated cases (prefill and decode clusters) into plans for frontier.

A case is NAME.json (`prefill` and `decode`: blocks, scheduler and step time of each; `handover`), NAME.csv
(the trace) and NAME.jsonl: the batches (replica 0 computes prompts, 1 makes tokens), then one object per
request with its times in s: `transfer` from when to when, `ttft` and `tpot` as Frontier defines them (the end
of the prefill after the arrival; from the end of the first decode iteration to the last, over their number
less one) and `end`. Its latency of the first token is left out: in f19, for 7 of 24 requests, it is another
batch's.

What is adapted:

* The KV of a request leaves when its prompt is computed, over a link of its own, into a buffer: the decode
  side hears of it when it is there, and reserves nothing before. The source holds its blocks until then.
* Frontier counts the bytes of the prompt's tokens, we those of its blocks. So the prefill side has blocks of
  one token, as many as the peer's blocks hold; its batches are equal, so nothing hung on the blocks there.
* Each iteration lasts 7.16 ms with the dummy predictor. With real profiles it is read off the case: prefills
  by their tokens, decodes as `decode_times` says.
"""

from pathlib import Path
from typing import Any

from adapt_frontier import (
    SAME,
    Cells,
    batches_of,
    command_of,
    constant,
    option,
    scheduler_of,
    tables,
    times_by_tokens,
    trace_of,
)
from peer_files import Batch, rows

DUMMY_STEP_NS = 7_160_000
FALL_S = 1e-3
"""What one part of a step takes less for each further request, so that no other part is negative: learned
times are not monotone."""
KV_BYTES_PER_TOKEN = {
    "meta-llama/Llama-2-7b-hf": 32 * 2 * 32 * 128 * 2,
    "qwen3-a3b-30b-moe": 48 * 2 * 4 * 128 * 2,
}
"""Layers, K and V, heads, numbers per head, bytes of each; over all GPUs."""
KV_GRANULARITY = 64
"""What Frontier rounds the mean context of a batch up to."""


def pdd_case(case: Path) -> tuple[dict[str, Any], Path, list[Batch], list[dict[str, Any]]]:
    command, batches = command_of(case), batches_of(case)
    trace = trace_of(case, command)
    prompts = [int(row["num_prefill_tokens"]) for row in rows(trace)]
    scheduler, blocks = scheduler_of(command), int(option(command, "num_blocks "))
    size = scheduler["block_size"]
    by_token = {"block_size": 1, "num_blocks": blocks * size + 1}
    if "_dummy_" in case.name:
        prefill_time = decode_time = constant(DUMMY_STEP_NS)
    else:
        prefill_time = times_by_tokens([batch for batch in batches if batch[0] == 0], prompts)
        decode_time = decode_times([batch for batch in batches if batch[0] == 1], prompts)
    link = command.split("--analytical_kv_cache_transfer_config_network_")
    figures = dict(part.split()[:2] for part in link[1:])
    adapted = {
        "prefill": {"blocks": blocks * size, "scheduler": scheduler | by_token, "step_time": prefill_time},
        "decode": {"blocks": blocks, "scheduler": scheduler, "step_time": decode_time},
        "handover": {
            "latency_ns": round(float(figures["latency_ms"]) * 1e6),
            "bytes_per_token": KV_BYTES_PER_TOKEN[command.split("--replica_config_model_name")[1].split()[0]],
            "bytes_per_s": float(figures["bandwidth_gbps"]) * 1e9 / 8,
        },
    }
    arrivals = [float(row["arrived_at"]) for row in rows(trace)]
    requests = [
        handed_over(row, arrivals[int(row["Request Id"])]) for row in rows(case / "request_metrics.csv")
    ]
    return adapted, trace, batches, requests


def handed_over(row: dict[str, str], arrival_s: float) -> dict[str, Any]:
    def seconds(name: str) -> float:
        return float(row[name]) / 1e3

    end_s = arrival_s + seconds("request_e2e_time")
    found = {"ttft": seconds("ttft"), "tpot": seconds("tpot"), "end": end_s}
    start, end = seconds("transfer_kv_cache_request_start_ts"), seconds("transfer_kv_cache_request_end_ts")
    return {
        "request": int(row["Request Id"]),
        "transfer": [float(f"{start:.12g}"), float(f"{end:.12g}")],
    } | {name: float(f"{value:.12g}") for name, value in found.items()}


def decode_times(batches: list[Batch], prompts: list[int]) -> dict[str, Any]:
    """Return tables for iterations whose time depends on their requests and their mean context, rounded up.

    They are read off the case, so equal times prove no more than that a few of them explain all batches. Our
    tables take the last token of a prompt for a prefill of one token, Frontier for a decode; so there is a
    cell for every context that the case has, and prefill cells complete the iterations that requests join.
    """
    most = max(len(members.split()) for _, _, _, members, _ in batches)
    by_tokens = [(most - requests) * FALL_S for requests in range(1, most + 1)]
    computed = [prompt - 1 for prompt in prompts]
    measured: dict[tuple[int, int], float] = {}
    joined: list[tuple[list[int], list[int]]] = []
    decode: Cells = {}
    for _, _, duration, members, _ in batches:
        requests = [int(pair.split(":")[0]) for pair in members.split()]
        contexts = [computed[request] + 1 for request in requests]
        old = [context for context, r in zip(contexts, requests, strict=True) if computed[r] >= prompts[r]]
        known = measured.setdefault(cell(contexts), duration)
        assert abs(known / duration - 1) < SAME, "depends on more than its requests and their mean context"
        if len(old) == len(contexts):
            decode[mean_of(contexts)] = known - by_tokens[len(contexts) - 1]
        else:
            joined.append((contexts, old))
        for request in requests:
            computed[request] += 1
    prefill: Cells = {}
    # Cells that other iterations have settled come first, then those that are left to choose.
    order = sorted(joined, key=lambda join: (bool(join[1]), mean_of(join[1]) not in decode))
    for contexts, old in order:
        new, total = len(contexts) - len(old), measured[cell(contexts)] - by_tokens[len(contexts) - 1]
        key = (sum(contexts) - sum(old) - new, round(new**0.5))
        known = 0.0
        if old and mean_of(old) in decode:
            known = decode[mean_of(old)]
        elif old:
            known = decode[mean_of(old)] = total - prefill.setdefault(key, 0.0)
        assert abs((known + prefill.setdefault(key, total - known)) / total - 1) < SAME, (
            "two times in one cell"
        )
    return tables(by_tokens, decode, prefill, 1)


def mean_of(contexts: list[int]) -> tuple[int, int]:
    """Return how many requests decode and their mean context, in whole tokens."""
    return len(contexts), sum(contexts) // max(1, len(contexts))


def cell(contexts: list[int]) -> tuple[int, int]:
    requests, mean = mean_of(contexts)
    return requests, -(-mean // KV_GRANULARITY) * KV_GRANULARITY
