"""Scenarios in which a field can show its effect: what the plain one needs besides, by the field's path."""

from typing import Any

Context = dict[str, Any]

SYN = "workload.synthetic"
ARR = f"{SYN}.arrivals"

CROWD: Context = {
    f"{ARR}.poisson.rate": 200,
    f"{SYN}.num_requests": 60,
    f"{SYN}.prompt_tokens": {"uniform": {"min": 16, "max": 1500}},
    f"{SYN}.output_tokens": {"uniform": {"min": 4, "max": 200}},
}
SHORT: Context = CROWD | {"engine.max_model_len": 2048}
AT_ONCE: Context = SHORT | {f"{ARR}.poisson.rate": 1e6}
FEW_SEQS: Context = SHORT | {"engine.max_num_seqs": 4}
FEW_BLOCKS: Context = SHORT | {"engine.num_gpu_blocks_override": 200}
FEW_SLOTS: Context = CROWD | {"engine.sglang.max_total_tokens": 3000}
PEOPLE: Context = {f"{SYN}.sessions": 5, f"{SYN}.max_priority": 2}
PREFIXES: Context = {f"{SYN}.shared_prefix": {"count": 5, "tokens": 512}}
SYNCHRONOUS: Context = {"engine.async_scheduling": False}
RETURNING: Context = FEW_BLOCKS | {
    f"{SYN}.num_requests": 200,
    f"{SYN}.prompt_tokens": 200,
    f"{SYN}.shared_prefix": {"count": 40, "tokens": 512},
}
LONG_SESSIONS: Context = {
    f"{ARR}.poisson.rate": 10,
    f"{SYN}.num_requests": 200,
    f"{SYN}.prompt_tokens": {"uniform": {"min": 16, "max": 800}},
    f"{SYN}.sessions": 20,
}
ORDER = "engine.scheduling_policy"
TRT = "engine.scheduler.tensorrt_llm"

CONTEXTS: dict[str, Context] = {
    "engine.dp_sync_interval": {f"{ARR}.poisson.rate": 3, f"{SYN}.output_tokens": 20},
    "engine.speculative.prompt_lookup": {f"{SYN}.prompt_tokens": 1, "engine.speculative.match_rate": 1},
    "engine.max_model_len": {f"{SYN}.prompt_tokens": 4090},
    "engine.max_num_active_seqs": CROWD,
    "engine.max_num_batched_tokens": CROWD,
    "engine.long_prefill": CROWD,
    "engine.enable_chunked_prefill": SHORT,
    "engine.enable_prefix_caching": PREFIXES,
    "engine.scheduler_reserve_full_isl": FEW_BLOCKS | {"engine.max_num_batched_tokens": 256},
    "engine.watermark": FEW_BLOCKS,
    "engine.cpu_overhead": SYNCHRONOUS,
    "engine.cpu_overhead.per_kernel_launch": SYNCHRONOUS | {"engine.enforce_eager": True},
    "engine.frontend.api_server_count": {f"{ARR}.burst": {}},
    "engine.sglang": FEW_SLOTS,
    "engine.sglang.mem_fraction_static": {},
    "engine.sglang.cuda_graph_max_bs": {},
    "engine.sglang.context_length": {f"{SYN}.prompt_tokens": 4090},
    "engine.sglang.max_total_tokens": CROWD,
    "engine.sglang.max_running_requests": CROWD,
    "engine.sglang.disable_radix_cache": PREFIXES,
    "engine.sglang.schedule_policy": FEW_SLOTS | PREFIXES,
    "engine.sglang.enable_priority": FEW_SLOTS | PEOPLE,
    "engine.sglang.schedule_low": FEW_SLOTS | PEOPLE,
    "engine.sglang.priority": CROWD | {f"{SYN}.max_priority": 20, "engine.sglang.max_running_requests": 2},
    "engine.step_time.tables": {f"{SYN}.num_requests": 1, f"{SYN}.output_tokens": 1},
    "cluster.router": CROWD | PREFIXES | {"cluster.replicas": 2},
    "clusters.router": CROWD | PREFIXES,
    "disaggregation": CROWD,
    "admission": CROWD,
    "dynamics": CROWD,
    "cluster.in_service": CROWD,
    "clusters.in_service": CROWD,
    "network": CROWD,
    f"{SYN}.max_priority": FEW_SEQS | {f"{ORDER}.priority": {}},
    "engine.kv_": RETURNING,
    "engine.kv_tiers.prefetch": RETURNING | {f"{ARR}.poisson.rate": 3},
    "engine.scheduler.": FEW_BLOCKS,
    "engine.scheduler.vllm_v0.max_num": SHORT,
    "engine.scheduler.static": SHORT,
    "engine.scheduler.vllm_v0.max_num_batched_tokens": CROWD | {"engine.max_model_len": 4096},
    f"{TRT}.capacity_policy": FEW_BLOCKS,
    f"{TRT}.max": AT_ONCE,
    f"{TRT}.enable_chunked_context": AT_ONCE | {f"{TRT}.max_num_tokens": 2048},
    f"{TRT}.enable_block_reuse": PREFIXES,
    ORDER: FEW_SEQS | PEOPLE,
    f"{ORDER}.edf.preemptive": FEW_SEQS | PEOPLE | {f"{ORDER}.edf.by_priority": ["9s", "5s", "1s"]},
    f"{ORDER}.mlfq": FEW_SEQS | {f"{ORDER}.mlfq.quantum_tokens": 8},
    f"{ORDER}.c_mlfq": FEW_SEQS | LONG_SESSIONS | {f"{ORDER}.c_mlfq.quantum_tokens": 16},
}
"""Contexts by the beginning of paths; the longest that fits holds."""


def busy_context(path: str) -> Context:
    """Return what the scenario of a field needs besides its own context."""
    best = max((start for start in CONTEXTS if path.startswith(start)), key=len, default=None)
    return {} if best is None else CONTEXTS[best]
