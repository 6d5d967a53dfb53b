"""Scenarios with encode clusters for tests."""

import copy
from typing import Any

from frontier.config import Scenario

ENCODE: dict[str, Any] = {"role": "encode"}
COLOCATED: dict[str, Any] = {"role": "colocated"}
PAIR: list[dict[str, Any]] = [{"role": "prefill"}, {"role": "decode"}]
WORKLOAD: dict[str, Any] = {
    "synthetic": {
        "arrivals": {"poisson": {"rate": 4}},
        "num_requests": 30,
        "prompt_tokens": 1500,
        "output_tokens": 20,
        "encoder": {"tokens": 4096},
    }
}


def plain(*clusters: dict[str, Any], **sections: Any) -> dict[str, Any]:
    """Return a scenario of a small vision-language model, a GPU for each engine, priced by bounds."""
    return copy.deepcopy(
        {
            "model": "qwen2.5-vl-7b",
            "hardware": "h100",
            "engine": {"step_time": "roofline"},
            "clusters": list(clusters) or [ENCODE, COLOCATED],
            "workload": WORKLOAD,
            **sections,
        }
    )


def scenario(*clusters: dict[str, Any], **sections: Any) -> Scenario:
    """Make the scenario of `plain`."""
    return Scenario.from_dict(plain(*clusters, **sections))
