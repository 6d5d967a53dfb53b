"""Scenarios changed with a known meaning: contradictions, extremes, and the same thing written differently."""

import datetime
import random
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from mutated_scenario_bases import BASES, kind_of
from mutated_scenario_cases import Blame, Case, changed, fields

Change = dict[str, Any]
_SYNTHETIC = "workload.synthetic"
_ARRIVALS = f"{_SYNTHETIC}.arrivals"
_TRACE = "workload.trace"

CONTRADICTIONS: Final[list[tuple[str, Change, str]]] = [
    ("poisson", {"engine.max_num_seqs": 513}, "engine.max_num_batched_tokens"),
    ("poisson", {"engine.max_model_len": 10**7}, "engine.max_model_len"),
    ("poisson", {"engine.enable_chunked_prefill": False}, "engine.max_num_batched_tokens"),
    ("poisson", {"engine.num_gpu_blocks_override": 100}, "engine"),
    ("poisson", {"engine.num_gpu_blocks_override": 10**9}, "engine.num_gpu_blocks_override"),
    ("poisson", {"engine.step_time": {"linear": {"per_step": "1ms"}}}, "engine.cpu_overhead"),
    ("poisson", {"engine.tensor_parallel_size": 3}, "engine.tensor_parallel_size"),
    ("poisson", {"engine.tensor_parallel_size": 64}, "engine.tensor_parallel_size"),
    ("poisson", {"engine.kv_cache_dtype": "fp8_ds_mla"}, "engine.kv_cache_dtype"),
    ("poisson", {"engine.speculative_config": {"method": "ngram"}}, "engine.speculative_config"),
    ("poisson", {"engine.pipeline_parallel_size": 1}, "engine.pipeline_parallel_size"),
    ("poisson", {"engine.gpu_memory_utilization": 1e-9}, "engine"),
    ("poisson", {"model": "llama-3.1-405b"}, "hardware.gpu"),
    ("poisson", {"cluster.router": "session_sticky"}, "cluster.router.policy"),
    ("poisson", {"cluster.router.max_imbalance": 4}, "cluster.router.max_imbalance"),
    ("poisson", {"objectives.window": {"warmup": "60%", "cooldown": "40%"}}, "objectives.window"),
    ("poisson", {f"{_SYNTHETIC}.prompt_tokens.uniform": {"min": 9, "max": 8}}, f"{_SYNTHETIC}.prompt_tokens.uniform"),
    ("poisson", {_ARRIVALS: {"poisson": {"rate": 1}, "burst": {}}}, _ARRIVALS),
    ("poisson", {_ARRIVALS: {}}, _ARRIVALS),
    ("poisson", {f"{_SYNTHETIC}.num_requests": None}, _SYNTHETIC),
    ("poisson", {_ARRIVALS: "burst", f"{_SYNTHETIC}.num_requests": None, f"{_SYNTHETIC}.duration": "1s"}, _SYNTHETIC),
    ("poisson", {f"{_SYNTHETIC}.num_requests": None, f"{_SYNTHETIC}.duration": "50000d"}, _SYNTHETIC),
    ("poisson", {f"{_SYNTHETIC}.prompt_tokens": 2**32 - 5}, _SYNTHETIC),
    ("poisson", {"workload": {**BASES["poisson"]["workload"], **BASES["trace"]["workload"]}}, "workload"),
    ("closed loop", {"engine.enable_prefix_caching": False}, "cluster.router.policy"),
    ("closed loop", {"engine.max_num_active_seqs": 9}, "engine.max_num_active_seqs"),
    ("closed loop", {"engine.max_num_scheduled_tokens": 257}, "engine.max_num_scheduled_tokens"),
    ("closed loop", {"engine.long_prefill_token_threshold": 1001}, "engine.long_prefill_token_threshold"),
    ("closed loop", {"engine.long_prefill_token_threshold": 0}, "engine.long_prefill_token_threshold_adaptive"),
    ("closed loop", {f"{_SYNTHETIC}.prompt_tokens.lognormal.min": 399}, f"{_SYNTHETIC}.prompt_tokens.lognormal"),
    ("closed loop", {"engine.step_time.linear": dict.fromkeys(("per_step", "per_seq"), 0)}, "engine.step_time"),
    ("gamma", {f"{_SYNTHETIC}.prompt_tokens.histogram.weights": [0, 0]}, f"{_SYNTHETIC}.prompt_tokens.histogram"),
    ("gamma", {f"{_SYNTHETIC}.prompt_tokens.histogram.weights": [1]}, f"{_SYNTHETIC}.prompt_tokens.histogram"),
    ("gamma", {f"{_SYNTHETIC}.prompt_tokens.histogram.edges": [1, 9, 9]}, f"{_SYNTHETIC}.prompt_tokens.histogram"),
    ("gamma", {f"{_SYNTHETIC}.prompt_tokens.histogram.edges": [1, -9, 200]}, f"{_SYNTHETIC}.prompt_tokens.histogram"),
    ("gamma", {f"{_SYNTHETIC}.output_tokens.zipf": {"exponent": 1, "min": 9, "max": 8}}, f"{_SYNTHETIC}.output_tokens"),
    ("gamma", {"model.num_attention_heads": 7}, "model.num_attention_heads"),
    ("gamma", {"model.num_key_value_heads": 3}, "model.num_key_value_heads"),
    ("gamma", {"model.model_type": "bert"}, "model"),
    ("gamma", {"model.model_type": "lama"}, "model.model_type"),
    ("gamma", {"hardware.gpu.peak": {"fp32": "10TFLOPS"}}, "hardware.gpu.peak"),
    ("gamma", {"hardware.gpu.memory": "10MiB"}, "hardware.gpu"),
    ("gamma", {"engine.tensor_parallel_size": 8}, "engine.tensor_parallel_size"),
    ("piecewise", {"model": {"config": "llama-3.1-8b", "num_hiden_layers": 4}}, "model.num_hiden_layers"),
    ("piecewise", {f"{_ARRIVALS}.piecewise.segments": [{"duration": "1s", "rate": 0}]}, f"{_ARRIVALS}.piecewise"),
    ("piecewise", {f"{_ARRIVALS}.piecewise.segments": [{"duration": "40000d", "rate": 1}] * 2}, f"{_ARRIVALS}.piecewise"),
    ("piecewise", {f"{_SYNTHETIC}.sessions": None}, "cluster.router.policy"),
    ("trace", {f"{_TRACE}.end": "0.0ms"}, f"{_TRACE}.end"),
    ("trace", {f"{_TRACE}.start": "800ms"}, _TRACE),
    ("trace", {f"{_TRACE}.time_scale": 2}, _TRACE),
    ("trace", {f"{_TRACE}.arrivals": "burst"}, _TRACE),
    ("trace", {f"{_TRACE}.num_requests": 10**6}, f"{_TRACE}.num_requests"),
    ("trace", {"cluster.router": {"policy": "session_sticky"}, f"{_TRACE}.columns.session": None}, "cluster.router.policy"),
]  # fmt: skip
"""(base, changes, path that must be named)."""

EXTREMES: Final[list[tuple[str, Change, int | None]]] = [
    *[("poisson", {f"{_SYNTHETIC}.{name}": size}, 30) for name in ("prompt_tokens", "output_tokens")
      for size in (10**9, "1g", 4_000_000_000, 2000, {"uniform": {"min": 2000, "max": 10**9}},
                   {"zipf": {"exponent": 1e-3, "min": 2000, "max": 10**7}},
                   {"range_ratio": {"mean": 10**9, "ratio": 0.1}}, {"histogram": {"edges": [5e8, 1e9], "weights": [1e18]}},
                   {"lognormal": {"mean": 1e9, "cv": 0.1, "min": 10**6, "max": 4 * 10**9}})],
    ("poisson", {f"{_SYNTHETIC}.prompt_tokens": 1999, f"{_SYNTHETIC}.output_tokens": 1}, 0),
    ("poisson", {f"{_SYNTHETIC}.prompt_tokens": 1, f"{_SYNTHETIC}.output_tokens": 1999}, 0),
    ("poisson", {"engine.max_model_len": 2, f"{_SYNTHETIC}.prompt_tokens": 1, f"{_SYNTHETIC}.output_tokens": 1}, 0),
    ("poisson", {"engine.max_model_len": 2}, 30),
    # 125 blocks hold one sequence of max_model_len, but one of them is the null block.
    ("poisson", {"engine.num_gpu_blocks_override": 125, f"{_SYNTHETIC}.prompt_tokens": 1973}, 0),
    ("poisson", {"engine.num_gpu_blocks_override": 125, f"{_SYNTHETIC}.prompt_tokens": 1974}, 30),
    ("poisson", {"engine.max_num_batched_tokens": 1, "engine.max_num_seqs": 1}, 0),
    ("poisson", {"engine.max_num_batched_tokens": 10**9}, 0),
    ("poisson", {"engine.max_num_batched_tokens": 10**9, "engine.max_num_seqs": 10**9}, 0),
    ("poisson", {"engine.max_num_scheduled_tokens": 1}, 0),
    ("poisson", {"engine.max_num_scheduled_tokens": 100, "engine.enable_chunked_prefill": False,
                 "engine.max_num_batched_tokens": 2000}, None),
    ("poisson", {"engine.long_prefill_token_threshold": 1}, 0),
    ("poisson", {"engine.watermark": 0.999999}, 0),
    ("poisson", {"engine.block_size": 1, "engine.num_gpu_blocks_override": 2001}, 0),
    ("poisson", {"engine.cpu_overhead.per_step": "10s"}, 0),
    ("poisson", {"engine.cpu_overhead": {"per_step": 0, "per_seq": 0}}, 0),
    ("poisson", {"cluster.replicas": 1000}, 0),
    ("poisson", {_ARRIVALS: {"poisson": {"rate": 1e9}}}, 0),
    ("poisson", {_ARRIVALS: {"poisson": {"rate": 1e-9}}}, None),
    ("poisson", {_ARRIVALS: {"constant": {"rate": 1e9}}}, 0),
    ("poisson", {_ARRIVALS: {"constant": {"rate": 1e-9}}}, None),
    ("poisson", {_ARRIVALS: {"gamma": {"rate": 1e9, "cv": 1000}}}, 0),
    ("poisson", {_ARRIVALS: {"gamma": {"rate": 1, "cv": 1e-4}}}, 0),
    ("poisson", {_ARRIVALS: "burst"}, 0),
    ("poisson", {_ARRIVALS: "burst", f"{_SYNTHETIC}.prompt_tokens": 10**9}, 30),
    ("poisson", {_ARRIVALS: {"piecewise": {"segments": [{"duration": "1ns", "rate": 1e9}] * 1000}}}, 0),
    ("poisson", {_ARRIVALS: {"piecewise": {"segments": [{"duration": "53375d", "rate": 1}]}}}, 0),
    ("poisson", {_ARRIVALS: {"piecewise": {"segments": [{"duration": "1ns", "rate": 1e-9}], "repeat": True}}}, None),
    ("poisson", {"objectives.ttft": "50000d", "objectives.tpot": "1ns"}, 0),
    ("poisson", {"objectives.window": {"warmup": "50000d"}}, 0),
    ("poisson", {"objectives.window": {"warmup": "99.999999%"}}, 0),
    ("poisson", {"output.timeline_interval": "50000d"}, 0),
    ("poisson", {"seed": 2**64 - 1, "replication": 2**64 - 1}, 0),
    ("poisson", {"hardware.price_per_hour": 1e308}, 0),
    ("poisson", {"name": "x" * 100_000}, 0),
    ("poisson", {f"{_SYNTHETIC}.num_requests": 1}, 0),
    ("closed loop", {_ARRIVALS: {"closed_loop": {"concurrency": 2**32 - 1}}}, 0),
    ("closed loop", {_ARRIVALS: {"closed_loop": {"concurrency": 2, "think_time": "50000d"}}}, None),
    ("closed loop", {f"{_SYNTHETIC}.prompt_tokens": 10**9}, 24),
    ("closed loop", {f"{_SYNTHETIC}.shared_prefix.tokens": 10**9, f"{_SYNTHETIC}.shared_prefix.share": 1}, 24),
    ("closed loop", {f"{_SYNTHETIC}.shared_prefix.tokens": 10**9}, None),
    ("closed loop", {f"{_SYNTHETIC}.shared_prefix.count": 10**9}, 0),
    ("closed loop", {f"{_SYNTHETIC}.shared_prefix.zipf_exponent": 100}, 0),
    ("closed loop", {f"{_SYNTHETIC}.sessions": 2**32 - 1, f"{_SYNTHETIC}.max_priority": 2**31 - 1}, 0),
    ("closed loop", {"cluster.router.max_imbalance": 2**32 - 1}, 0),
    ("closed loop", {"cluster.router.max_imbalance": 0}, 0),
    ("closed loop", {"engine.step_time.linear.per_kv_token": "50000d"}, None),
    ("gamma", {f"{_SYNTHETIC}.duration": "1ns"}, None),
    ("gamma", {f"{_SYNTHETIC}.duration": "50000d"}, 0),
    ("gamma", {"hardware.gpu.memory_bandwidth": "1MB/s"}, None),
    ("gamma", {"hardware.gpu.peak.bf16": "100MFLOPS"}, None),
    ("gamma", {"hardware.gpu.peak.bf16": "1000000PFLOPS", "hardware.gpu.memory_bandwidth": "1000000PB/s"}, 0),
    ("gamma", {"hardware.gpu.memory": "4EiB"}, None),
    ("gamma", {"model.max_position_embeddings": 2**31 - 1, "engine.max_model_len": None}, None),
    ("gamma", {"model.num_hidden_layers": 10_000}, None),
    ("gamma", {"model.vocab_size": 2**31 - 1}, None),
    ("trace", {f"{_TRACE}.end": None, f"{_TRACE}.num_requests": None, f"{_TRACE}.sample": 1, f"{_TRACE}.rate_scale": 1e-9}, 0),
    ("trace", {f"{_TRACE}.end": None, f"{_TRACE}.num_requests": None, f"{_TRACE}.sample": 1, f"{_TRACE}.rate_scale": 1e9}, 0),
    ("trace", {f"{_TRACE}.rate_scale": None, f"{_TRACE}.time_scale": 1e9}, None),
    ("trace", {f"{_TRACE}.sample": 1e-12}, None),
    ("trace", {f"{_TRACE}.start": "50000d", f"{_TRACE}.end": None}, None),
    ("trace", {f"{_TRACE}.rate_scale": 1, f"{_TRACE}.arrivals": {"constant": {"rate": 10}}, f"{_TRACE}.num_requests": 500}, 0),
]  # fmt: skip
"""(base, changes, requests rejected; None where an error may come as well)."""

_SAME_VALUES: Final[dict[str, list[Any]]] = {
    "90%": [0.9, " 90 % ", "90.0%"], "1%": [0.01], "200ms": ["0.2s", "200000us", " 200 ms "], "50ms": ["0.05s"],
    "100ms": ["0.1s", "1e2ms"], "1ms": ["1000us", ".001s", "1e6ns"], "10us": ["0.01ms"], "5s": ["5000ms", "5sec"],
    "40/s": [40, 40.0, "2400/min", "40 req/s", "144000/h"], "1200/min": [20, "20/s"], "60": ["60/s"],
    "2ms": ["2000us"], "10ns": ["0.01us"], "30ms": ["30000us"], "1500ms": ["1.5s"], "2s": ["2000ms"],
    "800ms": ["0.8s"], "8GiB": ["8192MiB", 8 * 2**30], "300GB/s": ["0.3TB/s", "2400Gbps"], "70%": [0.7],
    "40TFLOPS": ["0.04PFLOP/s"], "3us": ["3000ns"], "bfloat16": [], "0s": [0, "0ms"],
}  # fmt: skip
_WHOLE_KINDS: Final = ("few", "tokens", "positive", "length", "context", "whole", "seed")


def contradictions() -> list[Case]:
    """Return scenarios whose parts contradict each other."""
    return [
        Case(f"{base}/with {changes!r:.150}", _with(base, changes), "refused", (Blame(tuple(path.split(".")), nearby=True),))
        for base, changes, path in CONTRADICTIONS
    ]


def extremes() -> list[tuple[Case, int | None]]:
    """Return scenarios at the ends of what is accepted, with the number of requests that must be rejected."""
    return [
        (Case(f"{base}/with {changes!r:.150}", _with(base, changes), "ends"), rejected)
        for base, changes, rejected in EXTREMES
    ]


def same() -> Iterator[Case]:
    """Yield scenarios that say the same in other words."""
    rng = random.Random("the same in other words")
    for base, plain in BASES.items():
        yield Case(f"{base}/in another order", _shuffled(plain, rng), "same")
        for path, value in fields(plain):
            others = _SAME_VALUES.get(value, []) if isinstance(value, str) else []
            kind = kind_of(path)
            if kind in _WHOLE_KINDS and isinstance(value, int):
                others = [float(value)]
            if kind in ("tokens", "length", "context") and isinstance(value, int):
                others += [str(value), f"{value / 1000!r}k"]
            if kind == "length" and isinstance(value, int):
                others += [{"fixed": value}, {"fixed": value, "zipf": None}]
            short = {"router": "policy", "hardware": "gpu", "output_tokens": "fixed"}.get(path[-1])
            if isinstance(value, dict) and list(value) == [short]:
                others = [value[short]]
            elif short and isinstance(value, str):
                others = [{short: value}]
            for other in others:
                if path[-1] in ("warmup", "cooldown") and not isinstance(other, str):
                    continue
                yield Case(f"{base}/{'.'.join(path)} is {value!r:.40}, becomes {other!r:.40}", changed(plain, path, other), "same")


def native() -> Iterator[Case]:
    """Yield scenarios with Python values that no document holds."""
    rng = random.Random("values of Python")
    odd: list[Any] = [
        b"llama-3.1-8b", bytearray(b"x"), {1, 2}, frozenset(), object(), Decimal(5), Decimal("NaN"), Fraction(1, 3), 1 + 2j,
        np.int64(5), np.float32("nan"), np.array([1, 2]), np.array(5), np.str_("h100"), datetime.datetime(2024, 5, 10),
        datetime.date(2024, 5, 10), datetime.timedelta(-1), PurePath("x.csv"), range(3), iter([1]), len, int, Ellipsis,
        MappingProxyType({"gpu": "h100"}), {5: 1}, {None: 1}, {(1, 2): 3}, {b"x": 1}, "\ud800", float, memoryview(b"x"),
    ]  # fmt: skip
    for base, plain in BASES.items():
        paths = [path for path, _ in fields(plain)]
        for value in odd:
            path = rng.choice(paths)
            yield Case(f"{base}/{'.'.join(path)} becomes {value!r:.60}", changed(plain, path, value), "ends", native=True)


def _with(base: str, changes: Change) -> dict[str, Any]:
    """Return a base with values at dotted paths replaced; None removes a key."""
    plain = BASES[base]
    for dotted, value in changes.items():
        path = tuple(dotted.split("."))
        plain = _opened(plain, path, value)
    return plain


def _opened(plain: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Return a copy of `plain` with a value set, sections made where they are not there."""
    if len(path) > 1:
        inner = plain.get(path[0])
        return {**plain, path[0]: _opened(inner if isinstance(inner, dict) else {}, path[1:], value)}
    rest = {key: other for key, other in plain.items() if key != path[0]}
    return rest if value is None else {**rest, path[0]: value}


def _shuffled(plain: Any, rng: random.Random) -> Any:
    if isinstance(plain, list):
        return [_shuffled(entry, rng) for entry in plain]
    if not isinstance(plain, dict):
        return plain
    return {key: _shuffled(plain[key], rng) for key in rng.sample(list(plain), len(plain))}
