"""Event digests of a dozen scenarios, which must be equal on all platforms.

digests.py    print {"name": "digest"} as JSON, the content of `digests.json`
"""

import json
import sys
from typing import Any

import frontier

BASE: dict[str, Any] = {
    "model": "llama-3.1-8b",
    "hardware": {"gpu": "h100"},
    "workload": {
        "synthetic": {
            "arrivals": {"poisson": {"rate": "20/s"}},
            "num_requests": 400,
            "prompt_tokens": {"lognormal": {"mean": 600, "cv": 1.2, "max": 6000}},
            "output_tokens": {"lognormal": {"mean": 120, "cv": 0.8, "max": 1000}},
        }
    },
    "seed": 17,
}

POISSON_40 = {"poisson": {"rate": "40/s"}}
MANY_PREFIXES = {"count": 40, "tokens": 512, "zipf_exponent": 1.1, "share": 0.9}


def synthetic(**changes: Any) -> dict[str, Any]:
    return {"workload": {"synthetic": BASE["workload"]["synthetic"] | changes}}


SCENARIOS: dict[str, dict[str, Any]] = {
    "poisson": {},
    "another_seed": {"seed": 18},
    "another_replication": {"replication": 1},
    "gamma_least_outstanding": {
        **synthetic(arrivals={"gamma": {"rate": "40/s", "cv": 3.0}}),
        "cluster": {"replicas": 3, "router": "least_outstanding"},
    },
    "constant_random": {
        **synthetic(
            arrivals={"constant": {"rate": "40/s"}}, prompt_tokens={"zipf": {"exponent": 1.3, "max": 4000}}
        ),
        "cluster": {"replicas": 3, "router": "random"},
    },
    "burst_offline": synthetic(
        arrivals={"burst": {}}, prompt_tokens=256, output_tokens={"range_ratio": {"mean": 200, "ratio": 0.5}}
    ),
    "piecewise_power_of_two": {
        **synthetic(
            arrivals={
                "piecewise": {
                    "segments": [{"duration": "4s", "rate": "60/s"}, {"duration": "6s", "rate": "10/s"}],
                    "repeat": True,
                }
            }
        ),
        "cluster": {"replicas": 4, "router": "power_of_two"},
    },
    "closed_loop_least_kv_use": {
        **synthetic(arrivals={"closed_loop": {"concurrency": 64, "think_time": "200ms"}}),
        "cluster": {"replicas": 2, "router": "least_kv_use"},
    },
    "shared_prefixes_prefix_aware": {
        **synthetic(arrivals=POISSON_40, shared_prefix=MANY_PREFIXES),
        "cluster": {"replicas": 4, "router": "prefix_aware"},
    },
    "sessions_sticky": {
        **synthetic(arrivals=POISSON_40, sessions=50),
        "cluster": {"replicas": 4, "router": "session_sticky"},
    },
    "priority_preemption": {
        **synthetic(max_priority=2, shared_prefix=MANY_PREFIXES),
        "engine": {
            "scheduling_policy": "priority",
            "num_gpu_blocks_override": 1000,
            "max_num_batched_tokens": 1024,
            "max_model_len": 8192,
        },
    },
    "synchronous_without_cache_or_chunks": {
        **synthetic(
            prompt_tokens={"histogram": {"edges": [1, 100, 1000, 4000], "weights": [5, 3, 1]}},
            output_tokens={"uniform": {"min": 1, "max": 300}},
        ),
        "engine": {
            "async_scheduling": False,
            "enable_prefix_caching": False,
            "enable_chunked_prefill": False,
            "max_model_len": 8192,
        },
    },
    "linear_step_time": {
        "engine": {
            "step_time": {
                "linear": {
                    "per_step": "5ms",
                    "per_prefill_token": "50us",
                    "per_seq": "100us",
                    "per_kv_token": "100ns",
                }
            }
        }
    },
    "mixture_of_experts_tp8": {
        **synthetic(num_requests=150),
        "model": "mixtral-8x7b",
        "engine": {"tensor_parallel_size": 8},
    },
    "latent_attention_tp8": {
        **synthetic(num_requests=100),
        "model": "deepseek-v3",
        "hardware": {"gpu": "h200"},
        "engine": {"tensor_parallel_size": 8},
    },
    "prefill_and_decode_on_a_network": {
        "clusters": [
            {"role": "prefill", "replicas": 3},
            {"role": "decode", "replicas": 2, "router": "least_outstanding"},
        ],
        "disaggregation": {"kv_transfer": {"mode": "push", "granularity": "layer"}},
        "network": {"nics_per_node": 2, "nic_bandwidth": "100Gbps"},
    },
    "sglang_prefill_and_decode": {
        "engine": {"name": "sglang", "version": "0.5.3", "sglang": {"max_total_tokens": 12000}},
        "clusters": [{"role": "prefill", "replicas": 2}, {"role": "decode", "replicas": 2}],
        "dynamics": {"events": [{"at": "5s", "cluster": "decode", "replica": 1, "fail": {"down": "3s"}}]},
    },
    "decode_replica_lost": {
        "clusters": [{"role": "prefill", "replicas": 2}, {"role": "decode", "replicas": 2}],
        "disaggregation": {"kv_transfer": {"bandwidth": "20GB/s"}},
        "dynamics": {"events": [{"at": "5s", "cluster": "decode", "replica": 1, "fail": {"down": "3s"}}]},
    },
    "two_models": {
        **synthetic(models={"llama-3.1-8b": 3, "qwen3-8b": 1}),
        "clusters": [
            {"role": "colocated", "replicas": 2},
            {"role": "prefill", "model": "qwen3-8b"},
            {"role": "decode", "model": "qwen3-8b"},
        ],
    },
    "attention_and_ffn": {
        **synthetic(num_requests=100),
        "model": "qwen3-235b-a22b",
        "hardware": {"gpu": "h200"},
        "clusters": [
            {"role": "prefill", "engine": {"tensor_parallel_size": 8}},
            {"role": "attention", "engine": {"tensor_parallel_size": 4, "data_parallel_size": 4}},
            {"role": "ffn", "engine": {"data_parallel_size": 8}},
        ],
    },
    "azure_2023_conv": {
        "workload": {"trace": {"path": "azure-2023-conv"}},
        "cluster": {"replicas": 8},
    },
}


def scenario(name: str) -> frontier.Scenario:
    plain = BASE | SCENARIOS[name]
    # Packs of predictors may be trained anew at any time, which is no change of the simulator.
    engine = {"step_time": "roofline"} | plain.get("engine", {})
    return frontier.Scenario.from_dict(plain | {"engine": engine})


def main() -> None:
    sys.stdout.reconfigure(newline="\n")  # the same bytes on Windows
    print(json.dumps({name: frontier.simulate(scenario(name)).digest for name in SCENARIOS}, indent=2))


if __name__ == "__main__":
    main()
