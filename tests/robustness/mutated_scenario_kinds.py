"""What the fields of a scenario must refuse, by the kind of quantity they hold."""

from typing import Any, Final

from mutation_outcome import INF, NAN

_NO_NUMBER: Final[list[Any]] = [NAN, INF, -INF, "", "garbage", True, [], [5], {}, {"value": 5}]
_NO_WHOLE: Final[list[Any]] = [-1, -(10**9), 2.5, 10**20, 1e308, "5ms", "-5", *_NO_NUMBER]
_NO_TEXT: Final[list[Any]] = ["", "  ", 5, 2.5, NAN, False, [], ["x"], {"x": 1}]
_NO_WORD: Final[list[Any]] = ["", "garbage", 5, NAN, True, [], {}, {"x": 1}]
_NO_QUANTITY: Final[list[Any]] = [
    "",
    "fast",
    -3,
    True,
    [],
    {},
    NAN,
    INF,
    "-5",
    "5 parsecs",
    "1e999999999",
    "nan",
]
_NO_DURATION: Final[list[Any]] = [
    5,
    0.5,
    "5",
    "5m",
    "5 ms/s",
    "-5ms",
    "1e30s",
    "0.1ns",
    "12/s",
    "8GiB",
    *_NO_QUANTITY,
]
_NO_SHARE: Final[list[Any]] = [-0.5, 1.5, "110%", "-1%", "5ms", "50 percent", 10**9, *_NO_NUMBER]
_NO_RATE: Final[list[Any]] = [-1, "-1/s", "5ms", "12/fortnight", "fast", 1e308, 10**18, *_NO_NUMBER]
_NO_MODEL_SIZE: Final[list[Any]] = [0, -1, 2.5, NAN, INF, 1e308, 10**18, "", "5", "garbage", True, [], {}]

WRONG: Final[dict[str, list[Any]]] = {
    "text": _NO_TEXT,
    "word": _NO_WORD,
    "router": ["", "garbage", 5, NAN, True, [], {"x": 1}],
    "flag": [0, 1, "", "yes", "true", 2.5, NAN, [], {}, {"x": True}],
    "seed": ["7", 2**64, *_NO_WHOLE],
    "whole": ["5", 2**32, 10**18, *_NO_WHOLE],
    "positive": [0, "5", 2**32, 10**18, *_NO_WHOLE],
    "few": [0, "5", 10**9, 10**18, *_NO_WHOLE],
    "tokens": [0, 2**32, 10**18, "8q", "1e999999999", "-8k", *_NO_WHOLE],
    "tokens or none": [2**32, 10**18, "8q", "1e999999999", "-8k", *_NO_WHOLE],
    "length": [
        0,
        -1,
        2.5,
        2**32,
        10**18,
        "8q",
        "5ms",
        "",
        "uniform",
        NAN,
        INF,
        True,
        [],
        [5],
        {},
        {"fixed": -5},
    ],
    "chunk": [0, -2, 2**32, 10**18, "8q", 2.5, "5ms", *_NO_NUMBER],
    "factor": [-1, -0.5, "1", "5ms", *_NO_NUMBER],
    "context": [0, 1, -2, 2.5, 10**9, 10**18, "8q", "5ms", "automatic", *_NO_NUMBER],
    "number": [-1, -0.5, "1", 1e308, 10**18, "5ms", *_NO_NUMBER],
    "price": [-1, -0.5, "1", "$2", *_NO_NUMBER],
    "share": _NO_SHARE,
    "share over 0": [0, "0%", *_NO_SHARE],
    "share under 1": [1, "100%", *_NO_SHARE],
    "span": ["100%", "101%", "-1%", *_NO_DURATION],
    "duration": _NO_DURATION,
    "duration over 0": [0, "0s", *_NO_DURATION],
    "interval": [0, "0s", "999us", *_NO_DURATION],
    "rate": _NO_RATE,
    "rate over 0": [0, "0/s", 1e-12, *_NO_RATE],
    "reference": [
        "",
        " ",
        "no-such-name",
        "no/such/file.json",
        "a\x00b",
        "x" * 5000,
        5,
        NAN,
        True,
        [],
        ["h100"],
        {},
    ],
    "file": [
        "",
        "no-such-name",
        "no/such/file.csv",
        "/",
        "a\x00b.csv",
        "/" + "x" * 5000,
        5,
        NAN,
        True,
        [],
        {},
    ],
    "list": ["", 5, "1,2", NAN, True, [], {}, {"0": 1}],
    "model size": _NO_MODEL_SIZE,
    "model size or none": _NO_MODEL_SIZE,
    "model flag": [0, 1, "yes", 2.5, [], {}],
    "model word": ["garbage", 5, NAN, True, [], {}],
    "count": [0, "8q", 10**9, 10**18, *_NO_WHOLE],
    "bytes": [0, "8GB/s", "8 bytes", "8Gib", "1e30GiB", *_NO_QUANTITY],
    "bandwidth": [0, 300, "300", "300GB", "0GB/s", "300TFLOPS", *_NO_QUANTITY],
    "flops": [0, 40, "40", "0TFLOPS", "40GB/s", *_NO_QUANTITY],
}
"""Values that a field of each kind must refuse."""

_KINDS: Final[dict[str, str]] = {
    "name": "text", "path": "file", "model": "reference", "gpu": "reference", "config": "reference",
    "price_per_hour": "price", "tensor_parallel_size": "few", "block_size": "few", "replicas": "few",
    "num_gpu_blocks_override": "few", "max_model_len": "context", "max_num_batched_tokens": "tokens",
    "max_num_scheduled_tokens": "tokens", "long_prefill_token_threshold": "tokens or none",
    "max_num_seqs": "positive", "max_num_active_seqs": "positive", "gpu_memory_utilization": "share over 0",
    "watermark": "share under 1", "cooldown": "span", "warmup": "span", "seed": "seed",
    "replication": "seed", "timeline_interval": "interval", "rate": "rate over 0", "cv": "number",
    "mean": "number", "ratio": "share under 1", "exponent": "number", "zipf_exponent": "number",
    "share": "share", "concurrency": "positive", "count": "positive", "sessions": "positive",
    "max_priority": "whole", "max_imbalance": "whole", "num_requests": "few", "prompt_tokens": "length",
    "output_tokens": "length", "tokens": "length", "fixed": "tokens", "min": "tokens", "max": "tokens",
    "edges": "list", "weights": "list", "segments": "list", "sample": "share over 0",
    "rate_scale": "number", "num_sms": "count", "memory": "bytes", "gpus_per_node": "count",
    "bf16": "flops", "fp32": "flops", "compute_efficiency": "share over 0",
    "context_length": "context", "max_total_tokens": "tokens", "max_running_requests": "positive",
    "chunked_prefill_size": "chunk", "max_prefill_tokens": "tokens", "schedule_conservativeness": "factor",
    "num_key_value_heads": "model size or none", "head_dim": "model size or none",
    "tie_word_embeddings": "model flag", "torch_dtype": "model word", "model_type": "model word",
}  # fmt: skip
_FLAGS: Final = (
    "enable_chunked_prefill", "enable_prefix_caching", "scheduler_reserve_full_isl", "async_scheduling",
    "long_prefill_token_threshold_adaptive", "repeat", "steps", "disable_radix_cache", "enable_mixed_chunk",
    "disable_overlap_schedule",
)  # fmt: skip
_WORDS: Final = (
    "dtype", "kv_cache_dtype", "scheduling_policy", "schedule_policy", "policy", "format", "time_unit",
    "on_bad_row", "on_unsorted", "version",
)  # fmt: skip
_SIZES: Final = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size",
    "max_position_embeddings",
)  # fmt: skip
_OVER_ZERO: Final = ("duration", "ttft", "tpot", "itl", "e2e", "end")
_BY_PATH: Final[dict[tuple[str, ...], str]] = {
    ("engine", "name"): "word",
    ("engine", "step_time"): "word",
    ("cluster", "router"): "router",
    ("hardware",): "reference",
    ("workload", "synthetic", "prompt_tokens", "range_ratio", "mean"): "tokens",
    ("workload", "synthetic", "output_tokens", "range_ratio", "mean"): "tokens",
}


def kind_of(path: tuple[str, ...]) -> str | None:
    """Return the kind of the field at `path`, None for a section."""
    name = path[-1]
    if path in _BY_PATH:
        return _BY_PATH[path]
    if path[:3] == ("workload", "trace", "columns"):
        return "text" if len(path) == 4 else None
    if "segments" in path and name == "rate":
        return "rate"
    for kind, names in (
        ("flag", _FLAGS),
        ("word", _WORDS),
        ("model size", _SIZES),
        ("duration over 0", _OVER_ZERO),
    ):
        if name in names:
            return kind
    if name.endswith("_bandwidth"):
        return "bandwidth"
    if name in ("think_time", "start", "kernel_launch") or name.startswith("per_"):
        return _KINDS.get(name, "duration")
    return _KINDS.get(name)
