"""Turn the peers' golden cases into plans for frontier, and pack them for the repository.

    adapt.py GOLDEN_DIR OUT_DIR    write NAME.{json,csv,jsonl} for each case
    (then `golden_archive.py pack OUT_DIR ../../golden/peers.tar.xz`)

A case is: NAME.json (`scheduler` and `step_time` of the plan, `blocks` that the peer says exist), NAME.csv
(the trace), NAME.jsonl (one line per batch: replica, start in s, duration in s, "request:tokens ...",
blocks held after it was formed or null). What is adapted:

* Vidur's scheduler "vllm" is vLLM V0 with a padded budget; its blocks are all usable. Its operator tables
  become one table by tokens (counts rounded up to a multiple of 8, KV writes exact) and the cells of the
  attention tables that the case uses.
* A batch of a pipeline is one line: from the start of its first stage to the end of its last.
* What is adapted of Frontier's cases say `adapt_frontier.py` and, of its disaggregated ones, `adapt_pdd.py`.
* Cases of several replicas are run replica by replica, with the requests that the peer sent there: its
  least-outstanding router counts waiting requests alone, which is a defect and not reproduced.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapt_frontier import frontier_case
from adapt_pdd import pdd_case
from peer_files import MAX_MODEL_LEN, Batch, rows, tokens_of

GQA = {"Llama-2-7b-hf": False, "Meta-Llama-3-8B": True, "Meta-Llama-3-70B": True}
LAYERS = {"Llama-2-7b-hf": 32, "Meta-Llama-3-8B": 32, "Meta-Llama-3-70B": 80}
TOKEN_OPERATORS = (
    "attn_pre_proj_ms",
    "attn_post_proj_ms",
    "attn_rope_ms",
    "input_layernorm_ms",
    "mlp_up_proj_ms",
    "mlp_down_proj_ms",
    "mlp_act_ms",
    "post_attention_layernorm_ms",
    "add_ms",
)
BATCHING_OVERHEAD = 1.1
LAUNCH_MS = 0.02


def vidur_batches(case: Path) -> list[Batch]:
    """Return batches: start of the first stage, time to the end of the last, blocks held at that start."""
    passages: dict[tuple[int, int], list[dict[str, str]]] = {}
    for row in rows(case / "batch_stages.csv"):
        passages.setdefault((int(row["replica_id"]), int(row["batch_id"])), []).append(row)
    return [
        (
            int(first["replica_id"]),
            float(first["start_s"]),
            float(first["exec_time_s"])
            if first is last
            else float(last["start_s"]) + float(last["exec_time_s"]) - float(first["start_s"]),
            tokens_of(first["req_id:tokens"]),
            int(first["allocated_blocks_after"]),
        )
        for first, last in ((stages[0], stages[-1]) for stages in passages.values())
    ]


def decode_cells(case: Path) -> set[tuple[int, int]]:
    found = rows(case / "batch_stages.csv")
    return {(int(row["decode_bs"]), int(float(row["decode_avg_kv_rounded"]))) for row in found}


def vidur_tables(case: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Return the step time of a case: seconds of all layers, and of handing over to the next stage."""
    model = config["replica"]["model_name"].split("/")[1]
    layers, grouped = LAYERS[model], GQA[model]
    parallel = config["replica"]["tensor_parallel_size"] > 1
    stages = config["replica"]["num_pipeline_stages"]
    tables = case / "op_tables"
    by_tokens = [
        {key: float(value) for key, value in row.items()} for row in rows(tables / "by_num_tokens.csv.gz")
    ]
    largest = max(int(float(row["num_tokens"])) for row in rows(case / "batch_stages.csv"))

    def of_tokens(tokens: int) -> float:
        rounded = by_tokens[-(-tokens // 8) * 8 - 1]
        total = sum(rounded[name] for name in TOKEN_OPERATORS)
        total += by_tokens[tokens - 1]["attn_kv_cache_save_ms"]
        if parallel:
            total += 2 * (rounded["all_reduce_ms"] + LAUNCH_MS)
        return total * layers / 1e3

    def hand_over(tokens: int) -> float:
        return by_tokens[-(-tokens // 8) * 8 - 1]["send_recv_ms"] / 1e3

    def attention(points: Iterator[tuple[int, int, float]]) -> dict[str, Any]:
        first, second, time_s = zip(*sorted(points), strict=True)
        return {"first": list(first), "second": list(second), "time_s": list(time_s)}

    used = decode_cells(case)

    def decodes() -> Iterator[tuple[int, int, float]]:
        for row in rows(tables / "attn_decode.csv.gz"):
            seqs, context = int(row["batch_size"]), int(row["kv_cache_size"])
            if (seqs, context) in used:
                factor = BATCHING_OVERHEAD if grouped and seqs > 1 else 1.0
                yield seqs, context, float(row["ms"]) * factor * layers / 1e3

    def prefills() -> Iterator[tuple[int, int, float]]:
        for row in rows(tables / "attn_prefill_used.csv"):
            chunk = round(float(row["prefill_chunk_size_squared"]) ** 0.5)
            yield int(float(row["kv_cache_size"])), chunk, float(row["ms"]) * layers / 1e3

    return {
        "kind": "tables",
        "num_stages": stages,
        "send_recv_s": [hand_over(tokens) for tokens in range(1, largest + 1)] if stages > 1 else [],
        "tokens_s": [of_tokens(tokens) for tokens in range(1, largest + 1)],
        "decode": attention(decodes()),
        "prefill": attention(prefills()),
        "kv_granularity": 64,
        "prefill_batching_factor": BATCHING_OVERHEAD if grouped else 1.0,
    }


def vidur_case(case: Path) -> tuple[dict[str, Any], Path, list[Batch]]:
    config = json.loads((case / "config.json").read_text())
    scheduler, workload = config["scheduler"], config["workload"]
    blocks = int(json.loads((case / "run_stats.json").read_text())["num_blocks"])
    common = {
        "max_num_seqs": scheduler["batch_size_cap"],
        "watermark": scheduler["watermark_blocks_fraction"],
    }
    rules: dict[str, Any]
    if scheduler["type"] == "sarathi":
        rules = {"kind": "sarathi", "chunk_size": scheduler["chunk_size"], **common}
    else:
        budget = scheduler["max_tokens_in_batch"]
        rules = {"kind": "vllm_v0", "max_num_batched_tokens": budget, "padded_budget": True, **common}
    adapted = {
        "blocks": blocks,
        "scheduler": {
            "kind": "baseline",
            "block_size": scheduler["block_size"],
            "num_blocks": blocks,
            "max_model_len": MAX_MODEL_LEN,
            "policy": "fcfs",
            "pipeline_parallel_size": config["replica"]["num_pipeline_stages"],
            "rules": rules,
        },
        "step_time": vidur_tables(case, config),
    }
    return adapted, case.parents[1] / workload["trace_file"], vidur_batches(case)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("golden", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for case in sorted([*arguments.golden.glob("vidur/v*"), *arguments.golden.glob("frontier/f*")]):
        name = case.name
        handed_over: list[dict[str, Any]] = []
        if "_pdd_" in name:
            adapted, trace, batches, handed_over = pdd_case(case)
        elif "_real_" in name:
            continue  # decode times that depend on the prompts beside them
        else:
            adapted, trace, batches = (vidur_case if name.startswith("v") else frontier_case)(case)
        target = arguments.out / name
        target.with_suffix(".json").write_text(json.dumps(adapted, indent=None))
        target.with_suffix(".csv").write_text(trace.read_text())
        lines = [json.dumps([r, float(f"{s:.10g}"), float(f"{d:.10g}"), t, b]) for r, s, d, t, b in batches]
        lines += [json.dumps(request) for request in handed_over]
        target.with_suffix(".jsonl").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
