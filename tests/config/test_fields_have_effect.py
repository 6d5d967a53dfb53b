"""No field without effect: every leaf of the schema has two values that make a difference.

Both values are simulated, and the difference is in the digest, in a metric or in what is written; or, for the
fields named in `STARTS`, in whether the run starts. A plan that differs is not enough. A new field fails the
first test until it is listed here.
"""

import json
from pathlib import Path
from typing import Any

import fake_packs
import pytest
from busy_scenarios import busy_context

from frontier.config import Scenario
from frontier.config.issues import leaf_paths
from frontier.errors import FrontierError
from frontier.lowering import lower
from frontier.simulation import run_facts, simulate

PLAIN_ROWS = """at,in,out,who,level,hashes,others,whom
0,40,5,a,1,1|2|3,1|2|3,b
3,36,6,b,0,1|2|4,4|5|6,b
1,36,6,a,1,1|2|5,7|8|9,a
2,36,7,a,1,1|2|6,4|5|6,a
"""

LEARNED = {"engine.step_time.learned.packs": ["PACK"]}
LINEAR = {"engine.step_time": {"linear": {"per_step": "10ms"}}}
ROUTED = {"model": "qwen3-30b-a3b"}
SHARED_EXPERTS = {"model": "deepseek-v2-lite"}
POWER_LAW = ROUTED | {"engine.moe.routing.power_law.exponent": 1}
BIMODAL = "engine.moe.routing.bimodal"
LONG = {"engine.long_prefill_token_threshold": 64}
SHARED = {"workload.synthetic.shared_prefix": {"count": 2, "tokens": 64}}
DRAFTED = {"engine.speculative": {"method": "eagle", "num_speculative_tokens": 2, "acceptance": 0.7}}
LOOKED_UP = {
    "engine.speculative": {
        "method": "ngram",
        "num_speculative_tokens": 2,
        "acceptance": 0.7,
        "match_rate": 0.5,
    }
}
ALL_BUT_ACCEPTANCE = {
    "engine.speculative.method": "eagle",
    "engine.speculative.num_speculative_tokens": 2,
}
AZURE = {"workload": {"trace": {"path": "azure-2023-conv", "num_requests": 200}}}
SGLANG = {"engine.name": "sglang", "engine.version": "0.5.3"}
PRIORITY = {"engine.sglang.enable_priority_scheduling": True}
SGLANG_PAIR = {"clusters": [{"role": "prefill"}, {"role": "decode"}]}
EXPERTS = ROUTED | {"engine.data_parallel_size": 2}
WHOLE_EXPERTS = EXPERTS | {"engine.enable_expert_parallel": True}
REBALANCED = WHOLE_EXPERTS | {
    "engine.moe.drift.step_interval": 30,
    "engine.moe.routing.power_law.exponent": 1,
    "engine.moe.eplb.step_interval": 100,
    "engine.moe.eplb.window_size": 50,
}
FASTER_IN_FP16 = {
    "hardware.gpu": {
        "name": "own",
        "num_sms": 100,
        "memory": "80GiB",
        "memory_bandwidth": "2TB/s",
        "pcie_bandwidth": "64GB/s",
        "compute_capability": "9.0",
        "peak": {"fp32": "60TFLOPS", "bf16": "400TFLOPS", "fp16": "800TFLOPS"},
    }
}
DEEPEP = WHOLE_EXPERTS | {"engine.moe.all2all_backend": "deepep_low_latency"}
OVERLAPPED = DEEPEP | {"engine.moe.enable_dbo": True}
SPREAD = {**EXPERTS, "engine.pipeline_parallel_size": 2, "hardware.gpus_per_node": 2}
TWO_NODES = {"engine.data_parallel_size": 4, "hardware.gpus_per_node": 2}
HYBRID = {"engine.data_parallel_size": 4, "engine.data_parallel_hybrid_lb": True}
ORDER = "engine.scheduling_policy"
SLACK = {f"{ORDER}.least_slack.per_prefill_token": "9us", f"{ORDER}.least_slack.per_decode_token": "9us"}
SEGMENTS = [{"duration": "1s", "rate": 5}, {"duration": "1s", "rate": 50}]

Change = tuple[dict[str, Any], Any, Any]

SYN = "workload.synthetic"
ARR = f"{SYN}.arrivals"

EFFECTS: dict[str, Change] = {
    "name": ({}, "one", "another"),
    "model": ({}, "llama-3.1-8b", "qwen3-8b"),
    "hardware.gpu": ({}, "h100", "h200"),
    "hardware.price_per_hour": ({}, 1.0, 2.0),
    "hardware.gpus_per_node": ({"engine.tensor_parallel_size": 4}, 4, 2),
    "hardware.placement": (SPREAD, "tp_pp_dp", "tp_dp_pp"),
    "engine.pipeline_parallel_size": ({}, 1, 2),
    "engine.pipeline_layer_partition": ({"engine.pipeline_parallel_size": 2}, [15, 17], "17,15"),
    "engine.data_parallel_size": ({}, 1, 2),
    "engine.data_parallel_size_local": (HYBRID, 1, 2),
    "engine.data_parallel_external_lb": ({"engine.data_parallel_size": 2}, False, True),
    "engine.data_parallel_hybrid_lb": (TWO_NODES, False, True),
    "engine.api_server_count": ({"engine.data_parallel_size": 2}, 1, 2),
    "engine.dp_sync_interval": (EXPERTS, 16, 32),
    "engine.prefill_schedule_interval": (EXPERTS, 1, 4),
    "engine.enable_expert_parallel": (EXPERTS, False, True),
    "engine.decode_context_parallel_size": ({**EXPERTS, "engine.tensor_parallel_size": 8}, 1, 2),
    "engine.prefill_context_parallel_size": ({}, 1, 2),
    "engine.version": ({}, "0.19", "0.32"),
    "engine.performance_mode": ({}, "balanced", "throughput"),
    "engine.speculative.method": (DRAFTED, "eagle", "medusa"),
    "engine.speculative.num_speculative_tokens": (DRAFTED, 1, 2),
    "engine.speculative.acceptance.rate": (ALL_BUT_ACCEPTANCE, 0.5, 0.6),
    "engine.speculative.acceptance.per_position": (ALL_BUT_ACCEPTANCE, [0.5, 0.5], [0.5, 0.4]),
    "engine.speculative.acceptance.trace": (ALL_BUT_ACCEPTANCE, [1, 2], [[1, 2], [0]]),
    "engine.speculative.match_rate": (LOOKED_UP, 0.1, 0.2),
    "engine.speculative.cpu_per_step": (LOOKED_UP, None, "1ms"),
    "engine.speculative.prompt_lookup_min": (LOOKED_UP, 2, 3),
    "engine.speculative.prompt_lookup_max": (LOOKED_UP, 2, 3),
    "engine.tensor_parallel_size": ({}, 1, 2),
    "engine.dtype": (FASTER_IN_FP16, "bfloat16", "float16"),
    "engine.quantization": ({}, None, "fp8_per_block"),
    "engine.kv_cache_dtype": ({}, "auto", "fp8"),
    "engine.gpu_memory_utilization": ({}, 0.8, 0.9),
    "engine.block_size": ({}, 16, 32),
    "engine.num_gpu_blocks_override": ({}, 10_000, 20_000),
    "engine.max_model_len": ({}, 4096, 8192),
    "engine.max_num_batched_tokens": ({}, 2048, 4096),
    "engine.max_num_scheduled_tokens": ({}, None, 1000),
    "engine.max_num_seqs": ({}, 64, 128),
    "engine.max_num_active_seqs": ({}, None, 4),
    "engine.long_prefill_token_threshold": ({}, 0, 64),
    "engine.long_prefill_token_threshold_adaptive": (LONG, False, True),
    "engine.enable_chunked_prefill": ({"engine.max_model_len": 4096}, True, False),
    "engine.enable_prefix_caching": ({}, True, False),
    "engine.scheduler_reserve_full_isl": ({}, True, False),
    "engine.disable_hybrid_kv_cache_manager": ({"model": "gpt-oss-20b"}, True, False),
    "engine.watermark": ({}, 0.0, 0.3),
    "engine.async_scheduling": ({}, True, False),
    "engine.moe.sampling": (POWER_LAW, "draw", "mean"),
    "engine.moe.drift.step_interval": (POWER_LAW, 100, 200),
    "engine.moe.drift.shift": (POWER_LAW | {"engine.moe.drift.step_interval": 100}, 1, 2),
    "engine.moe.shared_experts_stream_token_threshold": (SHARED_EXPERTS, 0, 512),
    "engine.moe.routing.power_law.exponent": (ROUTED, 0.5, 1),
    "engine.moe.routing.bimodal.hot_experts": (ROUTED | {f"{BIMODAL}.hot_share": 0.3}, 4, 8),
    "engine.moe.routing.bimodal.hot_share": (ROUTED | {f"{BIMODAL}.hot_experts": 8}, 0.3, 0.4),
    "engine.moe.routing.trace.path": (ROUTED, "COUNTS", "OTHER_COUNTS"),
    "engine.moe.all2all_backend": (WHOLE_EXPERTS, "allgather_reducescatter", "deepep_low_latency"),
    "engine.moe.expert_placement_strategy": (WHOLE_EXPERTS | POWER_LAW, "linear", "round_robin"),
    "engine.moe.enable_dbo": (DEEPEP, False, True),
    "engine.moe.dbo_decode_token_threshold": (OVERLAPPED, 1, 64),
    "engine.moe.dbo_prefill_token_threshold": (OVERLAPPED, 1, 2000),
    "engine.moe.eplb.window_size": (REBALANCED, 10, 100),
    "engine.moe.eplb.step_interval": (REBALANCED, 100, 200),
    "engine.moe.eplb.num_redundant_experts": (REBALANCED, 0, 8),
    "engine.moe.eplb.use_async": (REBALANCED, True, False),
    "engine.sampling": ({}, "random", "greedy"),
    "engine.cpu_overhead.per_step": ({}, "1ms", "2ms"),
    "engine.cpu_overhead.per_seq": ({}, "10us", "20us"),
    "engine.cpu_overhead.per_kernel_launch": ({}, "29us", "10us"),
    "engine.cpu_overhead.per_graph_launch": ({}, "10us", "20ms"),
    "engine.cpu_overhead.per_graph_kernel": ({}, "900ns", "100us"),
    "engine.enforce_eager": ({}, False, True),
    "engine.cuda_graph.mode": ({}, "full_and_piecewise", "PIECEWISE"),
    "engine.cuda_graph.capture_sizes": ({}, [1, 2, 4, 8], [1, 2, 4]),
    "engine.cuda_graph.max_capture_size": ({}, 256, 128),
    "engine.frontend.api_server_count": ({"engine.frontend.per_request": "1ms"}, 1, 2),
    "engine.frontend.separate_detokenizer": ({"engine.frontend.per_output": "1ms"}, False, True),
    **{
        f"engine.frontend.{name}": ({}, "1ms", "2ms")
        for name in (
            *("network", "per_request", "per_prompt_token"),
            *("per_message", "per_output", "per_output_token"),
        )
    },
    "engine.step_time.learned.packs": ({}, ["PACK"], ["OTHER"]),
    "engine.step_time.learned.backend": (LEARNED, "vllm", "sglang"),
    "engine.step_time.learned.version": (LEARNED, "0.24", "0.23"),
    "engine.step_time.learned.calibration": (LEARNED, {"gemm": 1.1}, {"gemm": 1.2}),
    "engine.step_time.linear.per_step": (LINEAR, "1ms", "2ms"),
    "engine.step_time.linear.per_prefill_token": (LINEAR, "1us", "2us"),
    "engine.step_time.linear.per_decode_token": (LINEAR, "1us", "2us"),
    "engine.step_time.linear.per_seq": (LINEAR, "1us", "2us"),
    "engine.step_time.linear.per_kv_token": (LINEAR, "1ns", "2ns"),
    **{
        f"engine.sglang.{name}": (SGLANG | context, *values)
        for name, (context, *values) in {
            "context_length": ({}, 4096, 8192),
            "mem_fraction_static": ({}, 0.8, 0.9),
            "max_total_tokens": ({}, 3_000, 6_000),
            "max_running_requests": ({}, 16, 32),
            "chunked_prefill_size": ({}, 256, -1),
            "max_prefill_tokens": ({}, 16384, 512),
            "cuda_graph_max_bs": ({}, 256, 1024),
            "schedule_policy": ({}, "fcfs", "lpm"),
            "schedule_conservativeness": ({}, 1.0, 0.5),
            "disable_radix_cache": ({}, False, True),
            "radix_eviction_policy": ({}, None, "lfu"),
            "enable_mixed_chunk": ({}, False, True),
            "disable_overlap_schedule": ({}, False, True),
            "enable_priority_scheduling": ({}, False, True),
            "priority_scheduling_preemption_threshold": (PRIORITY, None, 3),
            "schedule_low_priority_values_first": (PRIORITY, False, True),
            "num_reserved_decode_tokens": (SGLANG_PAIR, None, 64),
            "disaggregation_decode_polling_interval": (SGLANG_PAIR, None, 4),
        }.items()
    },
    "engine.step_time.tables.path": ({}, "TABLES", "OTHER_TABLES"),
    "cluster.replicas": ({}, 1, 2),
    "cluster.router.policy": ({}, "round_robin", "random"),
    "cluster.router.max_imbalance": ({"cluster.router.policy": "prefix_aware"}, 1, 2),
    f"{ARR}.poisson.rate": ({}, 1, 2),
    f"{ARR}.gamma.rate": ({f"{ARR}.gamma.cv": 2}, 1, 2),
    f"{ARR}.gamma.cv": ({f"{ARR}.gamma.rate": 2}, 1, 2),
    f"{ARR}.constant.rate": ({}, 1, 2),
    f"{ARR}.piecewise.segments.duration": ({f"{ARR}.piecewise.segments": SEGMENTS}, "1s", "2s"),
    f"{ARR}.piecewise.segments.rate": ({f"{ARR}.piecewise.segments": SEGMENTS}, 1, 2),
    f"{ARR}.piecewise.repeat": ({f"{ARR}.piecewise.segments": SEGMENTS}, False, True),
    f"{ARR}.closed_loop.concurrency": ({}, 1, 2),
    f"{ARR}.closed_loop.think_time": ({f"{ARR}.closed_loop.concurrency": 1}, "0s", "1s"),
    f"{SYN}.num_requests": ({}, 5, 6),
    f"{SYN}.duration": ({}, "5s", "6s"),
    f"{SYN}.shared_prefix.count": (SHARED, 1, 2),
    f"{SYN}.shared_prefix.zipf_exponent": (SHARED, 0, 1),
    f"{SYN}.shared_prefix.share": (SHARED, "100%", "50%"),
    f"{SYN}.sessions": ({f"{ORDER}.vtc": {}, "engine.max_num_seqs": 4, f"{ARR}.burst": {}}, 1, 5),
    f"{SYN}.max_priority": ({}, 0, 1),
    "objectives.ttft": ({}, None, "1s"),
    "objectives.tpot": ({}, None, "1s"),
    "objectives.itl": ({}, None, "1s"),
    "objectives.e2e": ({}, None, "1s"),
    "objectives.window.warmup": ({}, "0s", "10%"),
    "objectives.window.cooldown": ({}, "0s", "1s"),
    "seed": ({}, 0, 1),
    "replication": ({}, 0, 1),
    "output.steps": ({}, True, False),
    "output.timeline_interval": ({}, "1s", "2s"),
    "workload.trace.path": ({}, "azure-2023-conv", "VIDUR"),
    "workload.trace.start": (AZURE, "0s", "1min"),
    "workload.trace.end": ({"workload": {"trace": "azure-2023-conv"}}, "10s", "20s"),
    "workload.trace.sample": (AZURE, 1, 0.5),
    "workload.trace.time_scale": (AZURE, 1, 2),
    "workload.trace.rate_scale": (AZURE, 1, 2),
    "workload.trace.num_requests": (AZURE, 5, 6),
}


def in_blocks(name: str, values: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return lengths that were tokens as multiples of a few KV blocks."""
    if name in ("cv", "ratio", "exponent", "weights"):
        return values
    one, other = ([64 * i for i in each] if isinstance(each, list) else 64 * each for each in values)
    return one, other


for _law, _fields in {
    "fixed": {"": (5, 6)},
    "uniform": {"min": (5, 6), "max": (15, 16)},
    "range_ratio": {"mean": (5, 6), "ratio": (0.5, 0.9)},
    "lognormal": {"mean": (5, 6), "cv": (0.5, 0.6), "min": (1, 4), "max": (7, 8)},
    "zipf": {"exponent": (1.1, 1.2), "min": (5, 6), "max": (15, 16)},
    "histogram": {"edges": ([1, 2, 3], [1, 2, 4]), "weights": ([1, 2], [1, 3])},
}.items():
    for _length in (f"{SYN}.prompt_tokens", f"{SYN}.output_tokens", f"{SYN}.shared_prefix.tokens"):
        _first = {f"{_length}.{_law}.{name}": values[0] for name, values in _fields.items() if name}
        if "shared" in _length:
            _first[f"{SYN}.shared_prefix.count"] = 20
            # Prefixes are shared by whole blocks.
            _fields = {name: in_blocks(name, values) for name, values in _fields.items()}
            _first |= {f"{_length}.{_law}.{name}": values[0] for name, values in _fields.items() if name}
        for _name, (_one, _other) in _fields.items():
            EFFECTS[f"{_length}.{_law}.{_name}".rstrip(".")] = (_first, _one, _other)

_TRACE_ARRIVALS = "workload.trace.arrivals"
for _path in [path for path in EFFECTS if path.startswith(f"{ARR}.")]:
    _context, _one, _other = EFFECTS[_path]
    _context = {path.replace(ARR, _TRACE_ARRIVALS): value for path, value in _context.items()}
    EFFECTS[_path.replace(ARR, _TRACE_ARRIVALS)] = ({**AZURE, **_context}, _one, _other)

COLUMNS = {"arrival": "at", "prompt_tokens": "in", "output_tokens": "out"}
PLAIN: dict[str, Any] = {"format": "plain", "columns": COLUMNS, "on_unsorted": "sort"}


def plain(**changes: Any) -> dict[str, Any]:
    """Return a context in which the workload is the file of `PLAIN_ROWS`."""
    return {"workload": {"trace": {"path": "FILE", **PLAIN, **changes}}}


ALONE = {"engine.max_num_seqs": 1}
ONE_BY_ONE = plain(time_unit="ms") | ALONE | {f"{ORDER}.vtc": {}}
HASHED = plain(block_size=16, columns={**COLUMNS, "hash_ids": "hashes"})
EFFECTS |= {
    "workload.trace.columns.arrival": (plain(), "at", "level"),
    "workload.trace.columns.prompt_tokens": (plain(), "in", "out"),
    "workload.trace.columns.output_tokens": (plain(), "in", "out"),
    "workload.trace.columns.priority": (
        plain(time_unit="ms") | ALONE | {f"{ORDER}.priority": {}},
        None,
        "level",
    ),
    "workload.trace.columns.session": (ONE_BY_ONE, "at", "who"),
    "workload.trace.columns.hash_ids": (HASHED, "hashes", "others"),
    "workload.trace.time_unit": (plain(), "s", "ms"),
    "workload.trace.block_size": (HASHED, 16, 15),
}

HOST = {"tier": "host", "capacity": "1GiB"}
TIERS = {"engine.kv_tiers": {"tiers": [HOST]}}
SLOW_POOL = {"tier": "remote", "capacity": "9TB", "read_bandwidth": "50MB/s"}
READ_AHEAD = {"tier": "host", "device_ratio": 3}, SLOW_POOL
PREFETCH = {
    "engine.kv_tiers": {"tiers": list(READ_AHEAD), "rules": "sglang", "prefetch": {"policy": "timeout"}}
}
RATIO = {"engine.kv_tiers": {"tiers": [{"tier": "host", "device_ratio": 2}]}}
TTL = {"engine.kv_tiers": {"tiers": [{**HOST, "eviction": "ttl"}]}}
EFFECTS |= {
    "engine.kv_offloading_size": ({}, 1, "2GiB"),
    "engine.kv_tiers.tiers.capacity": (TIERS, "500MiB", "2GiB"),
    "engine.kv_tiers.tiers.device_ratio": (RATIO, 2, 3),
    "engine.kv_tiers.tiers.read_bandwidth": (TIERS, "1GB/s", "400Gbps"),
    "engine.kv_tiers.tiers.write_bandwidth": (TIERS, None, "10GB/s"),
    "engine.kv_tiers.tiers.latency": (TIERS, None, "1ms"),
    "engine.kv_tiers.tiers.eviction": (TIERS, "lru", "arc"),
    "engine.kv_tiers.tiers.ttl": (TTL, None, "100ms"),
    "engine.kv_tiers.rules": (TIERS, "vllm", "sglang"),
    "engine.kv_tiers.write_policy": (TIERS, "write_through", "write_back"),
    "engine.kv_tiers.load": (TIERS, "async", "layerwise"),
    "engine.kv_tiers.min_load": (TIERS, 1, "1k"),
    "engine.kv_tiers.prefetch.policy": (
        {"engine.kv_tiers": {"tiers": list(READ_AHEAD), "rules": "sglang"}},
        "best_effort",
        "wait_complete",
    ),
    "engine.kv_tiers.prefetch.min_tokens": (PREFETCH, 256, 2048),
    "engine.kv_tiers.prefetch.timeout": (PREFETCH, None, "1us"),
    "engine.kv_tiers.prefetch.timeout_per_ki_token": (PREFETCH, None, "1us"),
}

DRAFT_MODEL = {
    "model": "qwen3-8b",
    "engine.speculative": {
        "method": "draft_model",
        "model": "qwen3-0.6b",
        "num_speculative_tokens": 2,
        "acceptance": 0.7,
    },
}
RULES = "engine.scheduler"
EFFECTS |= {
    f"{RULES}.vllm_v0.max_num_batched_tokens": ({}, 4096, 8192),
    f"{RULES}.vllm_v0.padded_budget": ({}, False, True),
    f"{RULES}.vllm_v0.max_num_seqs": ({}, 8, 16),
    f"{RULES}.vllm_v0.watermark": ({}, 0, 0.3),
    f"{RULES}.sarathi.chunk_size": ({}, 512, 1024),
    f"{RULES}.sarathi.max_num_seqs": ({}, 8, 16),
    f"{RULES}.sarathi.watermark": ({}, 0, 0.3),
    f"{RULES}.orca.max_batch_size": ({}, 8, 16),
    f"{RULES}.orca.reservation": ({}, "max", "oracle"),
    f"{RULES}.static.max_batch_size": ({}, 8, 16),
    f"{RULES}.tensorrt_llm.capacity_policy": ({}, "guaranteed_no_evict", "max_utilization"),
    f"{RULES}.tensorrt_llm.max_batch_size": ({}, 8, 16),
    f"{RULES}.tensorrt_llm.max_num_tokens": ({}, 4096, 8192),
    f"{RULES}.tensorrt_llm.enable_chunked_context": ({}, False, True),
    f"{RULES}.tensorrt_llm.enable_block_reuse": ({}, False, True),
}
_POLICIES: dict[str, tuple[dict[str, Any], dict[str, tuple[Any, Any]]]] = {
    "sjf": ({}, {"by": ("prompt", "output"), "error": (0, 0.5)}),
    "srpt": ({}, {"by": ("prompt", "output"), "error": (0, 0.5), "preemptive": (True, False)}),
    "edf": (
        {"objectives.ttft": "1s", "objectives.e2e": "2s"},
        {"by_priority": (["1s"], ["9s", "5s", "1s"]), "preemptive": (True, False)},
    ),
    "least_slack": (
        {"objectives.ttft": "1s", "objectives.e2e": "2s", **SLACK},
        {
            "objective": ("ttft", "e2e"),
            "by_priority": (["1s"], ["9s", "5s", "1s"]),
            "per_prefill_token": ("1us", "1ms"),
            "per_decode_token": ("1us", "100ms"),
            "error": (0, 0.5),
        },
    ),
    "mlfq": (
        {},
        {
            "levels": (2, 3),
            "quantum_tokens": (8, 16),
            "growth": (2, 4),
            "prompt_tokens_per_unit": (1, 2),
            "skip_join": (True, False),
            "starvation": (None, "1s"),
            "preemptive": (True, False),
        },
    ),
    "c_mlfq": (
        {f"{SYN}.sessions": 5},
        {
            "levels": (2, 3),
            "quantum_tokens": (8, 16),
            "growth": (2, 4),
            "prompt_tokens_per_unit": (1, 2),
            "starvation": (None, "1s"),
            "preemptive": (True, False),
            "small_return_tokens": (1, 200),
            "large_return_tokens": (300, 4000),
        },
    ),
    "vtc": ({f"{SYN}.sessions": 5}, {"input_weight": (1, 2), "output_weight": (1, 3)}),
    "expression": (
        {
            "objectives.ttft": "1s",
            "objectives.e2e": "2s",
            f"{ORDER}.expression.value": "deadline * predicted_output_tokens",
        },
        {
            "value": ("deadline", "prompt_tokens"),
            "objective": ("ttft", "e2e"),
            "error": (0, 0.5),
            "preemptive": (True, False),
        },
    ),
}
for _policy, (_first, _fields) in _POLICIES.items():
    for _name, (_one, _other) in _fields.items():
        EFFECTS[f"{ORDER}.{_policy}.{_name}"] = (_first, _one, _other)


PAIR: list[dict[str, Any]] = [{"role": "prefill"}, {"role": "decode"}]
HAND = "disaggregation.kv_transfer"
PULLED = {"clusters": PAIR, f"{HAND}.bandwidth": "1GB/s"}
PUSHED = PULLED | {f"{HAND}.mode": "push", "engine.max_num_batched_tokens": 256, "engine.max_num_seqs": 64}
TWO_OF_EACH = PULLED | {"clusters": [*PAIR, *({**each, "name": each["role"] + "2"} for each in PAIR)]}
TWO_COLOCATED = {
    "clusters": [{"role": "colocated", "name": name} for name in ("a", "b")],
    f"{ARR}.poisson.rate": 20,
}
BALANCES = ("weighted", "least_loaded")
EFFECTS |= {
    "clusters.name": (PULLED, "one", "other"),
    "clusters.replicas": (PULLED, 1, 2),
    "clusters.hardware": (PULLED, {"gpu": "h100"}, {"gpu": "h200"}),
    "clusters.engine": (PULLED, {"max_num_batched_tokens": 2048}, {"max_num_batched_tokens": 256}),
    "clusters.router.policy": (PULLED | {"clusters.0.replicas": 2}, "round_robin", "random"),
    "clusters.router.max_imbalance": (
        PULLED | {"clusters.0.replicas": 2, "clusters.0.router.policy": "prefix_aware"},
        1,
        2,
    ),
    "clusters.weight": (TWO_OF_EACH, 1, 3),
    f"{HAND}.mode": (PULLED, "pull", "push"),
    f"{HAND}.granularity": (PUSHED, "request", "layer"),
    f"{HAND}.proxy_latency": (PULLED, "0s", "1ms"),
    f"{HAND}.latency": (PULLED, None, "1ms"),
    f"{HAND}.bandwidth": (PULLED, "1GB/s", "400Gbps"),
    "disaggregation.direct_below": (PULLED, 100, 1000),
    "disaggregation.deflect_above": (PULLED, 500, 100_000),
    "disaggregation.balance.colocated": (TWO_COLOCATED, *BALANCES),
    "disaggregation.balance.prefill": (TWO_OF_EACH, *BALANCES),
    "disaggregation.balance.decode": (TWO_OF_EACH, *BALANCES),
}

POOLS: list[dict[str, Any]] = [{"role": "colocated", "name": name} for name in ("small", "large", "more")]
LIKE_NAMES = [{**pool, "served_model_name": name} for pool, name in zip(POOLS, "aab", strict=True)]
TWO_MODELS = {
    "clusters": [LIKE_NAMES[0], {**LIKE_NAMES[2], "model": "qwen3-8b"}],
    f"{SYN}.models": {"a": 1, "b": 1},
}
EFFECTS |= {
    "clusters.model": (TWO_MODELS | {"clusters": [LIKE_NAMES[0], LIKE_NAMES[2]]}, None, "qwen3-8b"),
    "clusters.served_model_name": (TWO_MODELS | {"clusters": LIKE_NAMES}, "a", "b"),
    f"{SYN}.models": (TWO_MODELS, {"a": 1, "b": 1}, {"a": "25%", "b": "75%"}),
    "workload.trace.columns.model": (
        {"clusters": TWO_MODELS["clusters"]} | plain(columns={**COLUMNS, "model": "who"}),
        "who",
        "whom",
    ),
}

IMAGES = f"{SYN}.encoder"
SEEN = {
    "model": "qwen2.5-vl-7b",
    "clusters": [{"role": "encode"}, {"role": "colocated"}],
    f"{SYN}.prompt_tokens": 2048,
    f"{SYN}.num_requests": 30,
    f"{ARR}.poisson.rate": 50,
    f"{IMAGES}.tokens": 2000,
}
TWO_ENCODERS = SEEN | {
    "clusters": [*({"role": "encode", "name": name} for name in "ab"), {"role": "colocated"}],
    f"{IMAGES}.tokens": {"uniform": {"min": 4, "max": 8000}},
}
SEEN_TRACE = {key: value for key, value in SEEN.items() if not key.startswith("workload")}
_LENGTHS: dict[str, dict[str, tuple[Any, Any]]] = {
    "uniform": {"min": (100, 200), "max": (4000, 5000)},
    "range_ratio": {"mean": (2000, 3000), "ratio": (0.1, 0.5)},
    "lognormal": {"mean": (1000, 2000), "cv": (0.5, 1.0), "min": (1, 1000), "max": (1500, 5000)},
    "zipf": {"exponent": (0.5, 1.0), "min": (1, 500), "max": (4000, 5000)},
    "histogram": {"edges": ([1, 100, 4000], [1, 2000, 4000]), "weights": ([1, 1], [1, 9])},
}
EFFECTS |= {
    "disaggregation.embedding_transfer.bandwidth": (SEEN, "1GB/s", "2GB/s"),
    "disaggregation.embedding_transfer.latency": (SEEN, "1ms", "2ms"),
    "disaggregation.balance.encode": (TWO_ENCODERS, *BALANCES),
    f"{IMAGES}.share": (SEEN, 0.2, 0.8),
    f"{IMAGES}.tokens.fixed": (SEEN, 1000, 2000),
    "workload.trace.columns.encoder_tokens": (
        SEEN_TRACE | plain(columns={**COLUMNS, "encoder_tokens": "in"}),
        "in",
        "out",
    ),
}
for _law, _fields_of in _LENGTHS.items():
    for _name, (_one, _other) in _fields_of.items():
        _law_given = {name: values[0] for name, values in _fields_of.items()}
        _seen = {key: value for key, value in SEEN.items() if key != f"{IMAGES}.tokens"}
        EFFECTS[f"{IMAGES}.tokens.{_law}.{_name}"] = (
            _seen | {f"{IMAGES}.tokens": {_law: _law_given}},
            _one,
            _other,
        )

AFD = "disaggregation.afd"
UNIT: list[dict[str, Any]] = [
    {"role": "attention", "engine": {"data_parallel_size": 2}},
    {"role": "ffn", "engine": {"data_parallel_size": 4}},
]
APART = ROUTED | {"clusters": [{"role": "prefill"}, *UNIT], f"{HAND}.bandwidth": "1GB/s"}
TWO_UNITS = APART | {
    "clusters": [
        {"role": "prefill"},
        *({**each, "name": f"{each['role']}{n}"} for n in "ab" for each in UNIT),
    ]
}
EFFECTS |= {
    f"{AFD}.micro_batches": (APART, 1, 3),
    f"{AFD}.a2f_dtype": (APART, "bf16", "fp8"),
    f"{AFD}.f2a_dtype": (APART, "bf16", "fp8"),
    f"{AFD}.latency": (APART, None, "1ms"),
    f"{AFD}.bandwidth": (APART, None, "1GB/s"),
    "disaggregation.balance.attention": (TWO_UNITS, *BALANCES),
}

# Engines of four GPUs on nodes of eight, two of each: KV crosses NICs, or NVLink where nodes are shared.
NODES = {
    "clusters": [{**each, "replicas": 2} for each in PAIR],
    "engine.tensor_parallel_size": 4,
}
ONE_NODE = {"clusters": PAIR, "engine.tensor_parallel_size": 4, "network.share_nodes": True}
PODS = NODES | {"clusters": [{**each, "replicas": 6} for each in PAIR], "network.oversubscription": 16}
FEW_NICS = NODES | {"network.nics_per_node": 2}
EFFECTS |= {
    "network.share_nodes": ({"clusters": PAIR, "engine.tensor_parallel_size": 4}, False, True),
    "network.nvlink_bandwidth": (ONE_NODE, "450GB/s", "50GB/s"),
    "network.nvlink_nodes": (NODES, 1, 2),
    "network.pcie_bandwidth": (NODES, "64GB/s", "10GB/s"),
    "network.gpus_per_pcie_switch": (NODES, 1, 8),
    "network.nics_per_node": (NODES, 8, 2),
    "network.nic_bandwidth": (NODES, "400Gbps", "50Gbps"),
    "network.oversubscription": (NODES | {"network.nodes_per_pod": 1}, 1, 16),
    "network.nodes_per_pod": (PODS, 1, 32),
    "network.rail_optimised": (PODS | {"network.nodes_per_pod": 1}, True, False),
    "network.intra_latency": (ONE_NODE, "4us", "1ms"),
    "network.inter_latency": (NODES, "5us", "1ms"),
    "network.link_efficiency": (NODES, 0.8, 0.1),
    "network.half_size": (NODES, None, "1GiB"),
}

TWO_REPLICAS = {"cluster.replicas": 2}
CLASS = "admission.classes"
FEW_LET_IN = {CLASS: [{"max_outstanding": 4}]}
TWO_CLASSES = {
    CLASS: [{"priority": 0, "max_outstanding": 4}, {"max_outstanding": 8}],
    f"{SYN}.max_priority": 2,
}
RETRIES = {CLASS: [{"max_outstanding": 4, "max_retries": 2}]}
EFFECTS |= {
    f"{CLASS}.priority": (TWO_CLASSES, 0, 1),
    f"{CLASS}.max_outstanding": (FEW_LET_IN, 2, 4),
    f"{CLASS}.timeout": (FEW_LET_IN, None, "100ms"),
    f"{CLASS}.max_retries": (FEW_LET_IN, 0, 2),
    f"{CLASS}.retry_delay": (RETRIES, None, "100ms"),
}
EVENTS = "dynamics.events"
SCALER = "dynamics.autoscale"
GROWING = {
    "cluster.replicas": 3,
    "cluster.in_service": 2,
    SCALER: [{"up_above": 4, "down_below": 3, "interval": "50ms", "provision": "20ms"}],
}
QUIET = GROWING | {"cluster.in_service": 3, f"{ARR}.poisson.rate": 20}
SWITCHED = NODES | {
    "clusters": [{"role": "prefill", "replicas": 3}, {"role": "decode", "replicas": 2, "in_service": 1}],
    EVENTS: [
        {"at": "50ms", "cluster": "prefill", "switch_role": {"to": "decode", "delay": "10ms"}},
    ],
}


def event(cluster: str | None = None, **change: Any) -> dict[str, Any]:
    """Return a context in which one change happens, to clusters or to a co-located scenario."""
    happens = {"at": "100ms", **change} | ({} if cluster is None else {"cluster": cluster})
    return (TWO_REPLICAS if cluster is None else NODES) | {EVENTS: [happens]}


EFFECTS |= {
    "cluster.in_service": (TWO_REPLICAS, 1, 2),
    "clusters.in_service": (NODES, 1, 2),
    "dynamics.lost_requests": (event(fail={}), "rerun", "fail"),
    f"{EVENTS}.at": (event(fail={}), "100ms", "200ms"),
    f"{EVENTS}.cluster": (event("decode", slow={"factor": 2}), "prefill", "decode"),
    f"{EVENTS}.replica": (event(fail={}), 0, 1),
    f"{EVENTS}.fail.down": (event(fail={}), None, "100ms"),
    f"{EVENTS}.restart.down": (event(at="0s", restart={"down": "1s"}), "1ms", "1s"),
    f"{EVENTS}.slow.factor": (event(slow={"factor": 2}), 2, 3),
    f"{EVENTS}.slow.duration": (event(slow={"factor": 2}), None, "100ms"),
    f"{EVENTS}.degrade_links.factor": (event("decode", degrade_links={"factor": 0.1}), 0.1, 0.01),
    f"{EVENTS}.degrade_links.duration": (event("decode", degrade_links={"factor": 0}), "50ms", "100ms"),
    f"{EVENTS}.switch_role.delay": (SWITCHED, "10ms", "100ms"),
    f"{SCALER}.min_replicas": (QUIET, 1, 2),
    f"{SCALER}.max_replicas": (GROWING, 2, 3),
    f"{SCALER}.interval": (GROWING, "50ms", "100ms"),
    f"{SCALER}.metric": (GROWING, "outstanding", "waiting"),
    f"{SCALER}.up_above": (GROWING, 4, 20),
    f"{SCALER}.down_below": (QUIET, 0, 3.9),
    f"{SCALER}.provision": (GROWING, "20ms", "100ms"),
    f"{SCALER}.cooldown": (GROWING | {"cluster.replicas": 4}, "10ms", "200ms"),
}
TWO_RESERVES = {
    "clusters": [
        {"role": "prefill", "replicas": 3},
        *({"role": "decode", "name": name, "replicas": 2, "in_service": 1} for name in ("one", "other")),
    ],
    "engine.tensor_parallel_size": 4,
    EVENTS: [{"at": "50ms", "cluster": "prefill", "switch_role": {"to": "one", "delay": "10ms"}}],
}
EFFECTS[f"{EVENTS}.switch_role.to"] = (TWO_RESERVES, "one", "other")
EFFECTS[f"{SCALER}.cluster"] = (
    NODES
    | {"clusters": [{**each, "replicas": 2, "in_service": 1} for each in PAIR]}
    | {SCALER: [{"cluster": "decode", "up_above": 4, "interval": "50ms", "provision": "20ms"}]},
    "prefill",
    "decode",
)


STARTS: dict[str, Change] = {
    "clusters.role": (PULLED, "prefill", "colocated"),
    f"{ORDER}.edf.objective": ({"objectives.e2e": "1s"}, "e2e", "ttft"),
    "engine.speculative.model": (DRAFT_MODEL, "qwen3-1.7b", "llama-3.1-8b"),
    "engine.name": (SGLANG, "sglang", "vllm"),
    "engine.kv_tiers.tiers.tier": (TIERS, "host", "disk"),
    "engine.kv_tiers.tiers.shared": (TIERS, False, True),
    "workload.trace.format": (plain(), "plain", "azure"),
    "workload.trace.on_bad_row": (plain(columns={**COLUMNS, "output_tokens": "level"}), "skip", "error"),
    "workload.trace.on_unsorted": (plain(), "sort", "error"),
}
"""Fields of which one value makes a run and the other, with the same rest, is an error."""

ONE_VALUE = {
    "engine.sglang.page_size": 16,
}
"""Fields that accept one value so far; another is refused."""

NO_FIELDS = {
    "engine.step_time.roofline": LINEAR,
    "engine.moe.routing.balanced": POWER_LAW,
    "engine.moe.routing.uniform": POWER_LAW,
    f"{ORDER}.fcfs": {f"{ORDER}.priority": {}},
    f"{ORDER}.priority": {},
    f"{ARR}.burst": {},
    f"{_TRACE_ARRIVALS}.burst": {**AZURE, f"{_TRACE_ARRIVALS}.poisson.rate": 1},
}
"""Alternatives without fields, and a context with another alternative."""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "trace.csv"
    path.write_text(PLAIN_ROWS)
    (tmp_path / "vidur.csv").write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0,5,5\n")
    for name, top in (("counts.csv", 9), ("other_counts.csv", 8)):
        counts = "\n".join(f"0,{expert},{top if expert < 4 else 1}" for expert in range(128))
        (tmp_path / name).write_text(f"layer,expert,count\n{counts}\n")
    versions = [{"version": "0.24.0"}, {"version": "0.23.0"}, {"backend": "sglang"}]
    trees = [fake_packs.tree("gemm", 2.0 + index, **each) for index, each in enumerate(versions)]
    fake_packs.write(tmp_path / "trace.pack", trees)
    fake_packs.write(tmp_path / "other.pack", fake_packs.dense_model())
    for name, seconds in (("one.json", 0.01), ("other.json", 0.02)):
        decode = {"first": [1], "second": [64], "time_s": [seconds]}
        prefill = {"first": [0], "second": [512], "time_s": [seconds]}
        tables = {"tokens_s": [seconds] * 8192, "decode": decode, "prefill": prefill}
        tables |= {"kv_granularity": 64, "prefill_batching_factor": 1.0}
        (tmp_path / name).write_text(json.dumps(tables))
    return str(path)


def filled(value: Any, file: str) -> Any:
    """Return a value with the stand-ins for files replaced."""
    if isinstance(value, dict):
        return {key: filled(item, file) for key, item in value.items()}
    if isinstance(value, list):
        return [filled(item, file) for item in value]
    names = {
        "FILE": file,
        "VIDUR": file.replace("trace.csv", "vidur.csv"),
        "COUNTS": file.replace("trace.csv", "counts.csv"),
        "OTHER_COUNTS": file.replace("trace.csv", "other_counts.csv"),
        "PACK": file.replace("trace.csv", "trace.pack"),
        "OTHER": file.replace("trace.csv", "other.pack"),
        "TABLES": file.replace("trace.csv", "one.json"),
        "OTHER_TABLES": file.replace("trace.csv", "other.json"),
    }
    return names.get(value, value) if isinstance(value, str) else value


def first_entry(path: str) -> str:
    """Return a path through lists as one through their first entries."""
    listed_in = ("segments.", "tiers.tiers.", "clusters.", "admission.classes.", "events.", "autoscale.")
    for listed in listed_in:
        path = path.replace(listed, f"{listed}0.")
    return path


def effects(scenario: Scenario) -> tuple[Any, ...]:
    """Return what a run comes to, but not the scenario's own text."""
    result = simulate(scenario)
    written = (result.columns.steps_recorded, result.timeline.shape)
    return (result.digest, str(result.summary()), result.kv_tiers, written)


def test_every_field_is_listed() -> None:
    listed = {*EFFECTS, *STARTS, *ONE_VALUE, *NO_FIELDS}
    assert listed == set(leaf_paths(Scenario))


@pytest.mark.parametrize("path", [path for path in EFFECTS if path != "name"])
def test_two_values_differ(base: Scenario, file: str, path: str) -> None:
    context, *values = EFFECTS[path]
    outcomes = []
    for value in values:
        change = {first_entry(path): value}
        outcomes.append(effects(base.with_(filled({**busy_context(path), **context, **change}, file))))
    assert outcomes[0] != outcomes[1]


@pytest.mark.parametrize("path", STARTS)
def test_one_value_runs_and_the_other_is_an_error(base: Scenario, file: str, path: str) -> None:
    context, good, bad = STARTS[path]
    scenario = base.with_(filled(context, file))
    path = first_entry(path)
    lower(scenario.with_({path: good}))
    with pytest.raises(FrontierError):
        lower(scenario.with_({path: bad}))


@pytest.mark.parametrize("path", ONE_VALUE)
def test_other_values_are_refused(base: Scenario, path: str) -> None:
    with pytest.raises(FrontierError):
        base.with_({path: ONE_VALUE[path]})


@pytest.mark.parametrize("path", NO_FIELDS)
def test_alternatives_without_fields_differ_from_others(base: Scenario, path: str) -> None:
    other = base.with_(NO_FIELDS[path])
    assert lower(other.with_({path: {}})).plan != lower(other).plan


def test_the_name_labels_the_result(base: Scenario) -> None:
    scenario = base.with_({"name": "label"})
    assert run_facts(scenario, lower(scenario)).scenario["name"] == "label"
