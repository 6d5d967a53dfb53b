"""Attention and FFN apart at scale: CPU seconds and memory of one simulation.

    python benches/afd_scale.py [--requests N] [--step-time roofline|learned]

1,024 GPUs: 256 for prefill (32 replicas of 8), 256 for attention and 512 for experts (8 units of 32 attention
ranks and 64 FFN ranks), Qwen3-235B, three micro-batches, prompts of 512 tokens, 128 output tokens, Poisson
arrivals at a quarter of the GPUs per second (the load of the reference simulator's own study).
"""

import argparse
import json
import resource
import sys
import time
from typing import Any

import frontier
from frontier.config import Scenario
from frontier.lowering import lower


def scenario(requests: int, step_time: str, rate: float) -> Scenario:
    """Return the deployment."""
    plain: dict[str, Any] = {
        "name": "afd-scale",
        "model": "qwen3-235b-a22b",
        "hardware": "h800",
        "engine": {"step_time": step_time},
        "clusters": [
            {
                "role": "prefill",
                "replicas": 32,
                "router": "least_outstanding",
                "engine": {
                    "tensor_parallel_size": 4,
                    "data_parallel_size": 2,
                    "enable_expert_parallel": True,
                },
            },
            {
                "role": "attention",
                "replicas": 8,
                "router": "least_outstanding",
                "engine": {"data_parallel_size": 32},
            },
            {"role": "ffn", "replicas": 8, "engine": {"data_parallel_size": 64}},
        ],
        "disaggregation": {"afd": {"micro_batches": 3}},
        "workload": {
            "synthetic": {
                "arrivals": {"poisson": {"rate": rate}},
                "num_requests": requests,
                "prompt_tokens": 512,
                "output_tokens": 128,
            }
        },
        "output": {"timeline_interval": "1min"},
    }
    return Scenario.from_dict(plain)


def main() -> None:
    """Simulate once and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=256.0, help="requests per second")
    parser.add_argument("--step-time", choices=("roofline", "learned"), default="roofline")
    given = parser.parse_args()
    chosen = scenario(given.requests, given.step_time, given.rate)
    lower(chosen)  # predictors are opened once per process
    start, started = time.process_time(), time.perf_counter()
    result = frontier.simulate(chosen)
    cpu_s, wall_s = time.process_time() - start, time.perf_counter() - started
    summary = result.summary().to_dict()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    print(
        json.dumps(
            {
                "requests": given.requests,
                "gpus": result.facts.gpus_total,
                "completed": summary["completed"],
                "simulated_s": summary["duration"],
                "steps": summary["num_steps_by_cluster"],
                "mean_ttft_ms": summary["mean_ttft_s"] * 1e3,
                "mean_tpot_ms": summary["mean_tpot_s"] * 1e3,
                "output_tokens_per_s": summary["output_throughput"],
                "cpu_s": round(cpu_s, 2),
                "wall_s": round(wall_s, 2),
                "peak_mib": round(peak / 2**20),
            }
        )
    )


if __name__ == "__main__":
    main()
