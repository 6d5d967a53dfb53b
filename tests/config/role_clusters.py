"""Scenarios with prefill and decode clusters for tests."""

from typing import Any

from frontier.config import Scenario

PREFILL: dict[str, Any] = {"role": "prefill"}
DECODE: dict[str, Any] = {"role": "decode"}
LINK: dict[str, Any] = {"kv_transfer": {"bandwidth": "50GB/s", "latency": "50us"}}
WORKLOAD: dict[str, Any] = {
    "synthetic": {
        "arrivals": {"poisson": {"rate": 4}},
        "num_requests": 20,
        "prompt_tokens": 1000,
        "output_tokens": 20,
    }
}


def plain(*clusters: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """Return a scenario of a 70B model on four GPUs per engine."""
    return {
        "model": "llama-3.1-70b",
        "hardware": "h100",
        "engine": {"tensor_parallel_size": 4},
        "clusters": list(clusters) or [PREFILL, DECODE],
        "workload": WORKLOAD,
        **sections,
    }


def scenario(*clusters: dict[str, Any], **sections: Any) -> Scenario:
    """Make the scenario of `plain`."""
    return Scenario.from_dict(plain(*clusters, **sections))
