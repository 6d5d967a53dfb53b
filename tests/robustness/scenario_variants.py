"""Scenarios changed with a known meaning: contradictions, and the same thing written differently."""

import datetime
import random
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePath
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from mutated_scenario_bases import BASES
from mutated_scenario_cases import Blame, Case, changed, fields
from mutated_scenario_kinds import kind_of
from mutation_outcome import Path

Change = dict[str, Any]

CONTRADICTIONS: Final[list[tuple[str, Change, str]]] = [
    ("poisson", {"engine.max_num_seqs": 513}, "engine.max_num_batched_tokens"),
    ("poisson", {"engine.max_model_len": 10**7}, "engine.max_model_len"),
    ("poisson", {"engine.enable_chunked_prefill": False}, "engine.max_num_batched_tokens"),
    ("poisson", {"engine.num_gpu_blocks_override": 100}, "engine"),
    ("poisson", {"engine.num_gpu_blocks_override": 10**9}, "engine.num_gpu_blocks_override"),
    ("poisson", {"engine.step_time": {"linear": {"per_step": "1ms"}}}, "engine.cpu_overhead"),
    ("poisson", {"engine.block_size": 24, "engine.num_gpu_blocks_override": 200}, "engine.block_size"),
    ("poisson", {"engine.tensor_parallel_size": 3}, "engine.tensor_parallel_size"),
    ("poisson", {"engine.tensor_parallel_size": 64}, "engine.tensor_parallel_size"),
    ("poisson", {"engine.kv_cache_dtype": "fp8_ds_mla"}, "engine.kv_cache_dtype"),
    ("poisson", {"engine.speculative_config": {"method": "ngram"}}, "engine.speculative_config"),
    ("poisson", {"engine.pipeline_parallel_size": 33}, "engine.pipeline_parallel_size"),
    (
        "poisson",
        {"engine.gpu_memory_utilization": 1e-9, "engine.num_gpu_blocks_override": None},
        "hardware.gpu",
    ),
    ("poisson", {"model": "llama-3.1-405b", "engine.num_gpu_blocks_override": None}, "hardware.gpu"),
    ("poisson", {"cluster.router": "session_sticky"}, "cluster.router.policy"),
    ("poisson", {"cluster.router.max_imbalance": 4}, "cluster.router.max_imbalance"),
    ("poisson", {"objectives.window": {"warmup": "60%", "cooldown": "40%"}}, "objectives.window"),
    ("poisson", {"synthetic.prompt_tokens.uniform": {"min": 9, "max": 8}}, "synthetic.prompt_tokens.uniform"),
    ("poisson", {"synthetic.arrivals": {"poisson": {"rate": 1}, "burst": {}}}, "synthetic.arrivals"),
    ("poisson", {"synthetic.arrivals": {}}, "synthetic.arrivals"),
    ("poisson", {"synthetic.num_requests": None}, "synthetic"),
    (
        "poisson",
        {"synthetic.arrivals": "burst", "synthetic.num_requests": None, "synthetic.duration": "1s"},
        "synthetic",
    ),
    ("poisson", {"synthetic.prompt_tokens": 2**32 - 5}, "synthetic"),
    ("poisson", {"workload": {**BASES["poisson"]["workload"], **BASES["trace"]["workload"]}}, "workload"),
    ("closed loop", {"engine.enable_prefix_caching": False}, "cluster.router.policy"),
    ("closed loop", {"engine.max_num_active_seqs": 9}, "engine.max_num_active_seqs"),
    ("closed loop", {"engine.max_num_scheduled_tokens": 257}, "engine.max_num_scheduled_tokens"),
    ("closed loop", {"engine.long_prefill_token_threshold": 1001}, "engine.long_prefill_token_threshold"),
    (
        "closed loop",
        {"engine.long_prefill_token_threshold": 0},
        "engine.long_prefill_token_threshold_adaptive",
    ),
    ("closed loop", {"synthetic.prompt_tokens.lognormal.min": 399}, "synthetic.prompt_tokens.lognormal"),
    (
        "closed loop",
        {"engine.step_time.linear": dict.fromkeys(("per_step", "per_seq"), 0)},
        "engine.step_time",
    ),
    ("gamma", {"synthetic.prompt_tokens.histogram.weights": [0, 0]}, "synthetic.prompt_tokens.histogram"),
    ("gamma", {"synthetic.prompt_tokens.histogram.weights": [1]}, "synthetic.prompt_tokens.histogram"),
    ("gamma", {"synthetic.prompt_tokens.histogram.edges": [1, 9, 9]}, "synthetic.prompt_tokens.histogram"),
    ("gamma", {"synthetic.prompt_tokens.histogram.edges": [1, -9, 200]}, "synthetic.prompt_tokens.histogram"),
    (
        "gamma",
        {"synthetic.output_tokens.zipf": {"exponent": 1, "min": 9, "max": 8}},
        "synthetic.output_tokens",
    ),
    ("gamma", {"model.num_attention_heads": 7}, "model.num_key_value_heads"),
    ("gamma", {"model.num_key_value_heads": 3}, "model.num_key_value_heads"),
    ("gamma", {"model.model_type": "bert"}, "model"),
    ("gamma", {"model.model_type": "lama"}, "model.model_type"),
    ("gamma", {"hardware.gpu.peak": {"fp32": "10TFLOPS"}}, "hardware.gpu.peak"),
    ("gamma", {"hardware.gpu.memory": "10MiB"}, "hardware.gpu"),
    ("gamma", {"engine.tensor_parallel_size": 8}, "engine.tensor_parallel_size"),
    ("piecewise", {"model": {"config": "llama-3.1-8b", "num_hiden_layers": 4}}, "model.num_hiden_layers"),
    (
        "piecewise",
        {"synthetic.arrivals.piecewise.segments": [{"duration": "1s", "rate": 0}]},
        "synthetic.arrivals.piecewise",
    ),
    (
        "piecewise",
        {"synthetic.arrivals.piecewise.segments": [{"duration": "40000d", "rate": 1}] * 2},
        "synthetic.arrivals.piecewise",
    ),
    ("piecewise", {"synthetic.sessions": None}, "cluster.router.policy"),
    ("trace", {"trace.end": "0.0ms"}, "trace.end"),
    ("trace", {"trace.start": "800ms"}, "trace"),
    ("trace", {"trace.time_scale": 2}, "trace"),
    ("trace", {"trace.arrivals": "burst"}, "trace"),
    ("trace", {"trace.num_requests": 10**6}, "trace.num_requests"),
    (
        "trace",
        {"cluster.router": {"policy": "session_sticky"}, "trace.columns.session": None},
        "cluster.router.policy",
    ),
]
"""(base, changes, path that must be named)."""

_SAME_VALUES: Final[dict[str, list[Any]]] = {
    "90%": [0.9, " 90 % ", "90.0%"], "1%": [0.01], "200ms": ["0.2s", "200000us", " 200 ms "],
    "50ms": ["0.05s"], "100ms": ["0.1s", "1e2ms"], "1ms": ["1000us", ".001s", "1e6ns"], "10us": ["0.01ms"],
    "5s": ["5000ms", "5sec"], "40/s": [40, 40.0, "2400/min", "40 req/s", "144000/h"],
    "1200/min": [20, "20/s"], "60": ["60/s"], "2ms": ["2000us"], "10ns": ["0.01us"], "30ms": ["30000us"],
    "1500ms": ["1.5s"], "2s": ["2000ms"], "800ms": ["0.8s"], "8GiB": ["8192MiB", 8 * 2**30],
    "300GB/s": ["0.3TB/s", "2400Gbps"], "70%": [0.7], "40TFLOPS": ["0.04PFLOP/s"], "3us": ["3000ns"],
    "bfloat16": [], "0s": [0, "0ms"],
}  # fmt: skip
_SHORT_FORMS: Final = {
    "cluster.router": "policy",
    "hardware": "gpu",
    "workload.synthetic.output_tokens": "fixed",
}
_WHOLE_KINDS: Final = ("few", "tokens", "positive", "length", "context", "whole", "seed")


def contradictions() -> list[Case]:
    """Return scenarios whose parts contradict each other."""
    return [
        Case(
            f"{base}/with {changes!r:.150}",
            with_changes(base, changes),
            "refused",
            (Blame(full_path(path), nearby=True),),
        )
        for base, changes, path in CONTRADICTIONS
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
            short = _SHORT_FORMS.get(".".join(path))
            if isinstance(value, dict) and list(value) == [short] and isinstance(value[short], str | int):
                others = [value[short]]
            elif short and isinstance(value, str):
                others = [{short: value}]
            for other in others:
                if path[-1] in ("warmup", "cooldown") and not isinstance(other, str):
                    continue
                yield Case(
                    f"{base}/{'.'.join(path)} is {value!r:.40}, becomes {other!r:.40}",
                    changed(plain, path, other),
                    "same",
                )


def native() -> Iterator[Case]:
    """Yield scenarios with Python values that no document holds."""
    rng = random.Random("values of Python")
    odd: list[Any] = [
        b"llama-3.1-8b", bytearray(b"x"), {1, 2}, frozenset(), object(), Decimal(5), Decimal("NaN"),
        Fraction(1, 3), 1 + 2j, np.int64(5), np.float32("nan"), np.array([1, 2]), np.array(5),
        np.str_("h100"), datetime.datetime(2024, 5, 10), datetime.date(2024, 5, 10), datetime.timedelta(-1),
        PurePath("x.csv"), range(3), iter([1]), len, int, Ellipsis, MappingProxyType({"gpu": "h100"}),
        {5: 1}, {None: 1}, {(1, 2): 3}, {b"x": 1}, "\ud800", float, memoryview(b"x"),
    ]  # fmt: skip
    for base, plain in BASES.items():
        paths = [path for path, _ in fields(plain)]
        for value in odd:
            path = rng.choice(paths)
            yield Case(
                f"{base}/{'.'.join(path)} becomes {value!r:.60}",
                changed(plain, path, value),
                "ends",
                native=True,
            )


def with_changes(base: str, changes: Change) -> dict[str, Any]:
    """Return a base with values at dotted paths replaced; None removes a key.

    Of paths below `workload`, that first part may be left out.
    """
    plain = BASES[base]
    for dotted, value in changes.items():
        plain = _opened(plain, full_path(dotted), value)
    return plain


def full_path(dotted: str) -> Path:
    """Return a path in parts, with the `workload` that was left out."""
    path = tuple(dotted.split("."))
    return ("workload", *path) if path[0] in ("synthetic", "trace") else path


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
