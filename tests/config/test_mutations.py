"""Mutated scenarios give a scenario that round-trips, or a `ConfigError`: never anything else."""

import copy
import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from frontier.config import Scenario
from frontier.errors import ConfigError

START = """
name: start
model: llama-3.1-8b
hardware: {gpu: h100, price_per_hour: 2.5}
engine:
  version: "0.32"
  gpu_memory_utilization: 92%
  max_model_len: 16K
  max_num_batched_tokens: 4k
  max_num_seqs: 64
  max_num_active_seqs: 32
  long_prefill_token_threshold: 1000
  cpu_overhead: {per_step: 2ms, per_seq: 12.5us}
cluster: {replicas: 4, router: {policy: prefix_aware, max_imbalance: 4}}
workload:
  synthetic:
    arrivals:
      piecewise:
        segments: [{duration: 1min, rate: 2/s}, {duration: 90s, rate: 30/min}]
    num_requests: 100
    duration: 1h
    prompt_tokens: {lognormal: {mean: 1000, cv: 1.2, max: 8000}}
    output_tokens: {histogram: {edges: [1, 10, 100.5], weights: [1, 2]}}
    shared_prefix: {count: 3, tokens: 100, zipf_exponent: 1, share: 50%}
    sessions: 7
objectives: {ttft: 500ms, tpot: 0.05s, window: {warmup: 10%, cooldown: 30s}}
seed: 7
output: {steps: false, timeline_interval: 250ms}
"""

START_CLUSTERS = """
model: llama-3.1-8b
hardware: {gpu: h100, price_per_hour: 2.5}
engine: {max_num_seqs: 64, step_time: {linear: {per_step: 1ms}}}
clusters:
  - {role: prefill, name: a, replicas: 4, weight: 2, engine: {max_num_batched_tokens: 16K}}
  - {role: prefill, name: b, hardware: h200, router: {policy: prefix_aware, max_imbalance: 4}}
  - role: decode
    hardware: {price_per_hour: 1.5}
    engine: {max_num_seqs: null, step_time: roofline, tensor_parallel_size: 2}
disaggregation:
  kv_transfer: {mode: push, granularity: layer, proxy_latency: 1ms, latency: 50us}
  direct_below: 1K
  deflect_above: 64K
  balance: {prefill: least_loaded}
network: {share_nodes: true, nic_bandwidth: 400Gbps, oversubscription: 2, nodes_per_pod: 4, half_size: 64KiB}
workload:
  synthetic: {arrivals: burst, num_requests: 10, prompt_tokens: 1000, output_tokens: 100}
"""

STRANGE: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**32,
    2**64,
    10**30,
    0.5,
    -0.0,
    1e-320,
    1e308,
    math.nan,
    math.inf,
    "",
    " ",
    "8",
    "-5ms",
    "5",
    "5 parsecs",
    "1e9",
    "1e999999999s",
    "nan",
    "110%",
    "auto",
    "h100",
    "\x00",
    "…",
    "x" * 10_000,
    [],
    [[]],
    [1, "a", None],
    {},
    {"": 1},
    {"a": {"b": {"c": 1}}},
]


def places(plain: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value within."""
    found = [path] if path else []
    items = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    for key, value in items:
        found += places(value, (*path, key))
    return found


def mutate(plain: dict[str, Any], draw: random.Random) -> None:
    """Change one value, remove one, or misspell one key, in place."""
    path = draw.choice(places(plain))
    container: Any = plain
    for key in path[:-1]:
        container = container[key]
    match draw.randrange(4):
        case 0 if isinstance(container, dict):
            name = str(path[-1])
            container[name[:-1] + draw.choice("xyz_")] = container.pop(path[-1])
        case 1:
            del container[path[-1]]
        case _:
            container[path[-1]] = copy.deepcopy(draw.choice(STRANGE))


def outcome(make: Callable[[], Scenario]) -> Scenario | ConfigError:
    """Return what is made, or the error; anything else that is raised fails the test."""
    try:
        return make()
    except ConfigError as error:
        return error


@pytest.mark.parametrize("text", [START, START_CLUSTERS], ids=["cluster", "clusters"])
@pytest.mark.parametrize("block", range(5))
def test_mutated_values(block: int, text: str) -> None:
    start = Scenario.from_yaml(text).to_dict()
    outcomes = {"valid": 0, "refused": 0}
    for number in range(100):
        draw = random.Random(f"{block} {number}")
        plain = copy.deepcopy(start)
        for _ in range(draw.choice((1, 1, 2, 5))):
            mutate(plain, draw)
        scenario = outcome(lambda: Scenario.from_dict(plain))  # noqa: B023 - called at once
        if isinstance(scenario, ConfigError):
            outcomes["refused"] += 1
            assert scenario.issues
            assert all(issue.message for issue in scenario.issues)
            assert len(str(scenario)) < 20_000
        else:
            outcomes["valid"] += 1
            assert Scenario.from_dict(scenario.to_dict()) == scenario
            assert Scenario.from_yaml(scenario.to_yaml()) == scenario
    assert min(outcomes.values()) >= 5, outcomes


def test_mutated_text() -> None:
    refused = 0
    for number in range(200):
        draw = random.Random(number)
        text = list(START)
        for _ in range(draw.choice((1, 3, 10))):
            at = draw.randrange(len(text))
            if draw.random() < 0.5:
                text[at] = draw.choice("\t\n {}[]:,&*!|>'\"%@`#-0123456789xé\x00")
            else:
                del text[at : at + draw.randrange(20)]
        refused += isinstance(outcome(lambda: Scenario.from_yaml("".join(text))), ConfigError)  # noqa: B023
    assert refused > 100
