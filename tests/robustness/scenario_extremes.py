"""Scenarios at the ends of what is accepted."""

from typing import Final

from mutated_scenario_cases import Case
from scenario_variants import Change, with_changes

EXTREMES: Final[list[tuple[str, Change, int | None]]] = [
    *[
        ("poisson", {f"synthetic.{name}": size}, 30)
        for name in ("prompt_tokens", "output_tokens")
        for size in (
            10**9,
            "1g",
            4_000_000_000,
            2000,
            {"uniform": {"min": 2000, "max": 10**9}},
            {"zipf": {"exponent": 1e-3, "min": 2000, "max": 10**7}},
            {"range_ratio": {"mean": 10**9, "ratio": 0.1}},
            {"histogram": {"edges": [5e8, 1e9], "weights": [1e18]}},
            {"lognormal": {"mean": 1e9, "cv": 0.1, "min": 10**6, "max": 4 * 10**9}},
        )
    ],
    ("poisson", {"synthetic.prompt_tokens": 1999, "synthetic.output_tokens": 1}, 0),
    ("poisson", {"synthetic.prompt_tokens": 1, "synthetic.output_tokens": 1999}, 0),
    ("poisson", {"engine.max_model_len": 2, "synthetic.prompt_tokens": 1, "synthetic.output_tokens": 1}, 0),
    ("poisson", {"engine.max_model_len": 2}, 30),
    # 125 blocks hold one sequence of max_model_len, but one of them is the null block.
    ("poisson", {"engine.num_gpu_blocks_override": 125, "synthetic.prompt_tokens": 1973}, 0),
    ("poisson", {"engine.num_gpu_blocks_override": 125, "synthetic.prompt_tokens": 1974}, 30),
    ("poisson", {"engine.max_num_batched_tokens": 1, "engine.max_num_seqs": 1}, 0),
    ("poisson", {"engine.max_num_batched_tokens": 10**9}, 0),
    ("poisson", {"engine.max_num_batched_tokens": 10**9, "engine.max_num_seqs": 10**9}, 0),
    ("poisson", {"engine.max_num_scheduled_tokens": 1}, 0),
    (
        "poisson",
        {
            "engine.max_num_scheduled_tokens": 100,
            "engine.enable_chunked_prefill": False,
            "engine.max_num_batched_tokens": 2000,
        },
        None,
    ),
    ("poisson", {"engine.long_prefill_token_threshold": 1}, 0),
    ("poisson", {"engine.watermark": 0.999999}, 0),
    ("poisson", {"engine.block_size": 4096, "engine.num_gpu_blocks_override": 2}, 0),
    ("poisson", {"engine.cpu_overhead.per_step": "10s"}, 0),
    ("poisson", {"engine.cpu_overhead": {"per_step": 0, "per_seq": 0}}, 0),
    ("poisson", {"cluster.replicas": 1000}, 0),
    ("poisson", {"synthetic.arrivals": {"poisson": {"rate": 1e9}}}, 0),
    ("poisson", {"synthetic.arrivals": {"poisson": {"rate": 1e-9}}}, None),
    ("poisson", {"synthetic.arrivals": {"constant": {"rate": 1e9}}}, 0),
    ("poisson", {"synthetic.arrivals": {"constant": {"rate": 1e-9}}}, None),
    ("poisson", {"synthetic.arrivals": {"gamma": {"rate": 1e9, "cv": 1000}}}, 0),
    ("poisson", {"synthetic.arrivals": {"gamma": {"rate": 1, "cv": 1e-4}}}, 0),
    ("poisson", {"synthetic.arrivals": "burst"}, 0),
    ("poisson", {"synthetic.arrivals": "burst", "synthetic.prompt_tokens": 10**9}, 30),
    (
        "poisson",
        {"synthetic.arrivals": {"piecewise": {"segments": [{"duration": "1ns", "rate": 1e9}] * 1000}}},
        0,
    ),
    ("poisson", {"synthetic.arrivals": {"piecewise": {"segments": [{"duration": "53375d", "rate": 1}]}}}, 0),
    (
        "poisson",
        {
            "synthetic.arrivals": {
                "piecewise": {"segments": [{"duration": "1ns", "rate": 1e-9}], "repeat": True}
            }
        },
        None,
    ),
    ("poisson", {"objectives.ttft": "50000d", "objectives.tpot": "1ns"}, 0),
    ("poisson", {"objectives.window": {"warmup": "50000d"}}, 0),
    ("poisson", {"objectives.window": {"warmup": "99.999999%"}}, 0),
    ("poisson", {"output.timeline_interval": "50000d"}, 0),
    ("poisson", {"seed": 2**64 - 1, "replication": 2**64 - 1}, 0),
    ("poisson", {"hardware.price_per_hour": 1e308}, 0),
    ("poisson", {"name": "x" * 100_000}, 0),
    ("poisson", {"synthetic.num_requests": 1}, 0),
    ("closed loop", {"synthetic.arrivals": {"closed_loop": {"concurrency": 2**32 - 1}}}, 0),
    (
        "closed loop",
        {"synthetic.arrivals": {"closed_loop": {"concurrency": 2, "think_time": "50000d"}}},
        None,
    ),
    ("closed loop", {"synthetic.prompt_tokens": 10**9}, 24),
    ("closed loop", {"synthetic.shared_prefix.tokens": 10**9, "synthetic.shared_prefix.share": 1}, 24),
    ("closed loop", {"synthetic.shared_prefix.tokens": 10**9}, 19),
    ("closed loop", {"synthetic.shared_prefix.count": 10**9}, 0),
    ("closed loop", {"synthetic.shared_prefix.zipf_exponent": 100}, 0),
    ("closed loop", {"synthetic.sessions": 2**32 - 1, "synthetic.max_priority": 2**31 - 1}, 0),
    ("closed loop", {"cluster.router.max_imbalance": 2**32 - 1}, 0),
    ("closed loop", {"cluster.router.max_imbalance": 0}, 0),
    ("closed loop", {"engine.step_time.linear.per_kv_token": "50000d"}, None),
    ("gamma", {"synthetic.duration": "1ns"}, 0),
    ("gamma", {"synthetic.duration": "50000d"}, 0),
    ("gamma", {"hardware.gpu.memory_bandwidth": "1MB/s"}, 0),
    ("gamma", {"hardware.gpu.peak.bf16": "100MFLOPS"}, 0),
    ("gamma", {"hardware.gpu.peak.bf16": "1000000PFLOPS", "hardware.gpu.memory_bandwidth": "1000000PB/s"}, 0),
    ("gamma", {"hardware.gpu.memory": "4EiB"}, None),
    ("gamma", {"model.max_position_embeddings": 2**31 - 1, "engine.max_model_len": None}, None),
    ("gamma", {"model.num_hidden_layers": 10_000}, None),
    ("gamma", {"model.vocab_size": 2**31 - 1}, None),
    (
        "trace",
        {"trace.end": None, "trace.num_requests": None, "trace.sample": 1, "trace.rate_scale": 1e-9},
        0,
    ),
    ("trace", {"trace.end": None, "trace.num_requests": None, "trace.sample": 1, "trace.rate_scale": 1e9}, 0),
    ("trace", {"trace.rate_scale": None, "trace.time_scale": 1e9}, 0),
    ("trace", {"trace.sample": 1e-12}, None),
    ("trace", {"trace.start": "50000d", "trace.end": None}, None),
    (
        "trace",
        {"trace.rate_scale": 1, "trace.arrivals": {"constant": {"rate": 10}}, "trace.num_requests": 500},
        0,
    ),
]
"""(base, changes, requests rejected; None where an error may come as well)."""


def extremes() -> list[tuple[Case, int | None]]:
    """Return scenarios at the ends of what is accepted, with the number of requests that must be rejected."""
    return [
        (Case(f"{base}/with {changes!r:.150}", with_changes(base, changes), "ends"), rejected)
        for base, changes, rejected in EXTREMES
    ]
