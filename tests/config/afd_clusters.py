"""Scenarios with attention and FFN clusters for tests."""

from typing import Any

from frontier.config import Scenario

PREFILL: dict[str, Any] = {"role": "prefill", "engine": {"tensor_parallel_size": 2}}
DECODE: dict[str, Any] = {"role": "decode", "engine": {"tensor_parallel_size": 2}}
ATTENTION: dict[str, Any] = {"role": "attention", "engine": {"data_parallel_size": 2}}
FFN: dict[str, Any] = {"role": "ffn", "engine": {"data_parallel_size": 4}}
LINK: dict[str, Any] = {"kv_transfer": {"bandwidth": "50GB/s", "latency": "50us"}}


def plain(*clusters: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """Return a scenario of a small model with experts: one unit of two attention and four FFN GPUs."""
    return {
        "model": "qwen3-30b-a3b",
        "hardware": "h100",
        "engine": {"step_time": "roofline"},
        "clusters": list(clusters) or [PREFILL, ATTENTION, FFN],
        "disaggregation": LINK,
        "workload": {
            "synthetic": {
                "arrivals": {"poisson": {"rate": 20}},
                "num_requests": 30,
                "prompt_tokens": 500,
                "output_tokens": 20,
            }
        },
        **sections,
    }


def scenario(*clusters: dict[str, Any], **sections: Any) -> Scenario:
    """Make the scenario of `plain`."""
    return Scenario.from_dict(plain(*clusters, **sections))


def over(cluster: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Return a cluster with other fields; those of its engine are merged."""
    engine = cluster["engine"] | changes.pop("engine", {})
    return {**cluster, **changes, "engine": engine}
