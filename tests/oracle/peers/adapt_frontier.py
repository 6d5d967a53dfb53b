"""Turn Frontier's co-located cases into plans for frontier.

Its "vllm_v1" becomes vLLM V1's rules, synchronous, with one block more, since vLLM keeps block 0. Its dummy
predictor is a constant per step.
"""

from pathlib import Path
from typing import Any

from peer_files import MAX_MODEL_LEN, Batch, rows, tokens_of

DUMMY_STEP_NS = 9_120_000
SAME = 1e-9

Cells = dict[tuple[int, int], float]


def option(command: str, name: str) -> str:
    return command.split(f"--vllm_v1_scheduler_config_{name}")[1].split(maxsplit=1)[0]


def command_of(case: Path) -> str:
    return (case / "command.txt").read_text().replace("\\\n", " ")


def trace_of(case: Path, command: str) -> Path:
    return case.parents[1] / command.split("_config_trace_file")[1].split(maxsplit=1)[0]


def scheduler_of(command: str) -> dict[str, Any]:
    return {
        "kind": "vllm_v1",
        "block_size": int(option(command, "block_size")),
        "num_blocks": int(option(command, "num_blocks ")) + 1,
        "max_model_len": MAX_MODEL_LEN,
        "max_num_batched_tokens": int(option(command, "max_tokens_in_batch")),
        "max_num_scheduled_tokens": None,
        "max_num_seqs": int(option(command, "batch_size_cap")),
        "max_num_active_seqs": None,
        "long_prefill_token_threshold": int(option(command, "long_prefill_token_threshold")),
        "long_prefill_token_threshold_adaptive": False,
        "enable_chunked_prefill": "--no-vllm_v1_scheduler_config_enable_chunked_prefill" not in command,
        "enable_prefix_caching": "--vllm_v1_scheduler_config_enable_prefix_caching" in command,
        "policy": "fcfs",
        "scheduler_reserve_full_isl": False,
        "watermark": float(option(command, "watermark_blocks_fraction")),
        "async_scheduling": False,
    }


def batches_of(case: Path) -> list[Batch]:
    return [
        (
            int(row["replica_id"]),
            float(row["stage_start_s"]),
            float(row["stage_end_s"]) - float(row["stage_start_s"]),
            tokens_of(row["req_id:tokens"]),
            None,
        )
        for row in rows(case / "batches.csv")
    ]


def constant(per_step_ns: int) -> dict[str, Any]:
    rates = ("per_prefill_token_ns", "per_decode_token_ns", "per_seq_ns", "per_kv_token_ns")
    return {"kind": "linear", "per_step_ns": per_step_ns} | dict.fromkeys(rates, 0)


def frontier_case(case: Path) -> tuple[dict[str, Any], Path, list[Batch]]:
    command, batches = command_of(case), batches_of(case)
    trace = trace_of(case, command)
    adapted = {"blocks": int(option(command, "num_blocks ")), "scheduler": scheduler_of(command)}
    if "_moe_" in case.name:
        lengths = [int(row["num_prefill_tokens"]) for row in rows(trace)]
        adapted["step_time"] = times_by_tokens(batches, lengths)
    else:
        adapted["step_time"] = constant(DUMMY_STEP_NS)
    return adapted, trace, batches


def times_by_tokens(batches: list[Batch], prompts: list[int]) -> dict[str, Any]:
    """Return tables for steps whose time depends on their tokens alone: constants, and transfers of tokens.

    Counts that no batch has are left at 0, attention is free.
    """
    times: dict[int, float] = {}
    computed = [0] * len(prompts)
    decodes, prefills = set(), set()
    for _, _, duration, members, _ in batches:
        pairs = [
            (int(request), int(tokens)) for request, tokens in (pair.split(":") for pair in members.split())
        ]
        total = sum(tokens for _, tokens in pairs)
        assert abs(times.setdefault(total, duration) / duration - 1) < SAME, "depends on more than its tokens"
        chunks = [
            (computed[request], tokens) for request, tokens in pairs if computed[request] < prompts[request]
        ]
        contexts = [computed[request] + 1 for request, _ in pairs if computed[request] >= prompts[request]]
        if contexts:
            decodes.add((len(contexts), -(-(sum(contexts) // len(contexts)) // 64) * 64))
        if chunks:
            before = -(-sum(done for done, _ in chunks) // 64) * 64
            prefills.add((before, round(sum(tokens**2 for _, tokens in chunks) ** 0.5)))
        for request, tokens in pairs:
            computed[request] += tokens

    by_tokens = [times.get(tokens, 0.0) for tokens in range(1, max(times) + 1)]
    return tables(by_tokens, dict.fromkeys(decodes, 0.0), dict.fromkeys(prefills, 0.0), 64)


def tables(tokens_s: list[float], decode: Cells, prefill: Cells, kv_granularity: int) -> dict[str, Any]:
    def points(cells: Cells) -> dict[str, Any]:
        found = sorted(cells.items())
        return {
            "first": [first for (first, _), _ in found],
            "second": [second for (_, second), _ in found],
            "time_s": [time_s for _, time_s in found],
        }

    return {
        "kind": "tables",
        "num_stages": 1,
        "send_recv_s": [],
        "tokens_s": tokens_s,
        "decode": points(decode),
        "prefill": points(prefill),
        "kv_granularity": kv_granularity,
        "prefill_batching_factor": 1.0,
    }
