"""Valid scenarios to mutate.

Between them they name nearly every field of the schema. They are small: tens of requests, a few hundred
tokens, a pool of a few hundred blocks.
"""

from typing import Any, Final

TRACE_FILE: Final = "TRACE"
"""Stands for the path of the trace file in the scenario `trace`."""
TRACE_REQUESTS: Final = 24

TRACE_TEXT: Final = "time_ms,input,output,urgency,user\n" + "".join(
    f"{40 * i},{20 + 7 * (i % 9)},{3 + i % 5},{i % 3},u{i % 4}\n" for i in range(TRACE_REQUESTS)
)

_LINEAR: Final = {
    "linear": {
        "per_step": "2ms",
        "per_prefill_token": "20us",
        "per_decode_token": "10us",
        "per_seq": "5us",
        "per_kv_token": "10ns",
    }
}
_TINY_MODEL: Final = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "vocab_size": 1000,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
_TINY_GPU: Final = {
    "name": "tiny",
    "num_sms": 16,
    "memory": "8GiB",
    "memory_bandwidth": "300GB/s",
    "peak": {"fp32": "10TFLOPS", "bf16": "40TFLOPS"},
    "nvlink_bandwidth": "50GB/s",
    "pcie_bandwidth": "16GB/s",
    "gpus_per_node": 4,
    "kernel_launch": "3us",
    "compute_efficiency": "70%",
    "price_per_hour": 0.5,
}

BASES: Final[dict[str, dict[str, Any]]] = {
    "poisson": {
        "name": "poisson",
        "model": "llama-3.1-8b",
        "hardware": {"gpu": "h100", "price_per_hour": 2.5},
        "engine": {
            "name": "vllm",
            "version": "0.32",
            "tensor_parallel_size": 2,
            "dtype": "bfloat16",
            "kv_cache_dtype": "auto",
            "gpu_memory_utilization": "90%",
            "block_size": 16,
            "num_gpu_blocks_override": 256,
            "max_model_len": 2000,
            "max_num_batched_tokens": 512,
            "max_num_seqs": 16,
            "enable_chunked_prefill": True,
            "enable_prefix_caching": True,
            "scheduling_policy": "fcfs",
            "scheduler_reserve_full_isl": True,
            "watermark": "1%",
            "async_scheduling": True,
            "cpu_overhead": {"per_step": "1ms", "per_seq": "10us"},
            "step_time": "roofline",
        },
        "cluster": {"replicas": 2, "router": {"policy": "least_outstanding"}},
        "workload": {
            "synthetic": {
                "arrivals": {"poisson": {"rate": "40/s"}},
                "num_requests": 30,
                "prompt_tokens": {"uniform": {"min": 10, "max": 300}},
                "output_tokens": 12,
            }
        },
        "objectives": {
            "ttft": "200ms",
            "tpot": "50ms",
            "itl": "100ms",
            "e2e": "5s",
            "window": {"warmup": "10%", "cooldown": "50ms"},
        },
        "seed": 7,
        "replication": 1,
        "output": {"steps": True, "timeline_interval": "100ms"},
    },
    "closed loop": {
        "model": "qwen3-8b",
        "hardware": "h100",
        "engine": {
            "num_gpu_blocks_override": 128,
            "max_model_len": 1000,
            "max_num_scheduled_tokens": 200,
            "max_num_batched_tokens": 256,
            "max_num_seqs": 8,
            "max_num_active_seqs": 6,
            "long_prefill_token_threshold": 100,
            "long_prefill_token_threshold_adaptive": True,
            "scheduling_policy": "priority",
            "step_time": _LINEAR,
        },
        "cluster": {"replicas": 3, "router": {"policy": "prefix_aware", "max_imbalance": 8}},
        "workload": {
            "synthetic": {
                "arrivals": {"closed_loop": {"concurrency": 5, "think_time": "30ms"}},
                "num_requests": 24,
                "prompt_tokens": {"lognormal": {"mean": 60, "cv": 0.5, "min": 4, "max": 400}},
                "output_tokens": {"range_ratio": {"mean": 10, "ratio": 0.5}},
                "shared_prefix": {"count": 3, "tokens": 48, "zipf_exponent": 1.1, "share": 0.75},
                "sessions": 6,
                "max_priority": 3,
            }
        },
    },
    "sglang": {
        "model": "llama-3.1-8b",
        "hardware": "h100",
        "engine": {
            "name": "sglang",
            "version": "0.5.3",
            "step_time": _LINEAR,
            "sglang": {
                "context_length": 2000,
                "max_total_tokens": 1500,
                "max_running_requests": 8,
                "chunked_prefill_size": 128,
                "max_prefill_tokens": 400,
                "schedule_policy": "lpm",
                "schedule_conservativeness": 0.9,
                "disable_radix_cache": False,
                "enable_mixed_chunk": True,
                "disable_overlap_schedule": False,
            },
        },
        "cluster": {"replicas": 2, "router": {"policy": "prefix_aware", "max_imbalance": 8}},
        "workload": {
            "synthetic": {
                "arrivals": {"poisson": {"rate": "40/s"}},
                "num_requests": 24,
                "prompt_tokens": {"uniform": {"min": 10, "max": 200}},
                "output_tokens": 12,
                "shared_prefix": {"count": 3, "tokens": 48, "zipf_exponent": 1.1, "share": 0.75},
            }
        },
    },
    "gamma": {
        "model": _TINY_MODEL,
        "hardware": {"gpu": _TINY_GPU},
        "engine": {"max_num_seqs": 32, "max_model_len": "auto"},
        "workload": {
            "synthetic": {
                "arrivals": {"gamma": {"rate": "1200/min", "cv": 2.5}},
                "duration": "1500ms",
                "num_requests": 40,
                "prompt_tokens": {"histogram": {"edges": [1, 50, 200], "weights": [3, 1]}},
                "output_tokens": {"zipf": {"exponent": 1.2, "min": 2, "max": 40}},
            }
        },
    },
    "piecewise": {
        "model": {"config": "llama-3.1-8b", "num_hidden_layers": 4},
        "hardware": {"gpu": "a100-80gb"},
        "engine": {"num_gpu_blocks_override": 300, "max_model_len": 1500, "step_time": _LINEAR},
        "workload": {
            "synthetic": {
                "arrivals": {
                    "piecewise": {
                        "segments": [
                            {"duration": "300ms", "rate": "20/s"},
                            {"duration": "200ms", "rate": 0},
                            {"duration": "0.5s", "rate": 60},
                        ],
                        "repeat": True,
                    }
                },
                "duration": "2s",
                "prompt_tokens": 200,
                "output_tokens": {"fixed": 8},
                "sessions": 4,
            }
        },
        "cluster": {"replicas": 2, "router": "session_sticky"},
    },
    "trace": {
        "model": "llama-3.1-8b",
        "hardware": "h100",
        "engine": {"num_gpu_blocks_override": 128, "max_model_len": 1000, "step_time": _LINEAR},
        "workload": {
            "trace": {
                "path": TRACE_FILE,
                "format": "plain",
                "columns": {
                    "arrival": "time_ms",
                    "prompt_tokens": "input",
                    "output_tokens": "output",
                    "priority": "urgency",
                    "session": "user",
                },
                "time_unit": "ms",
                "on_bad_row": "error",
                "on_unsorted": "error",
                "start": "0s",
                "end": "800ms",
                "sample": "90%",
                "rate_scale": 2,
                "num_requests": 12,
            }
        },
        "seed": 3,
    },
}
