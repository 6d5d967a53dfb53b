"""What each flag of SGLang's server (0.5.3) means for a scenario."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from frontier.launch.command_line import Command
from frontier.launch.mapping import Mapped, Rules, name_model, only, without_fields

_OWN: Final = (
    "context_length",
    "mem_fraction_static",
    "max_running_requests",
    "max_total_tokens",
    "chunked_prefill_size",
    "max_prefill_tokens",
    "schedule_policy",
    "schedule_conservativeness",
    "page_size",
    "radix_eviction_policy",
    "disable_radix_cache",
    "enable_mixed_chunk",
    "disable_overlap_schedule",
    "enable_priority_scheduling",
    "schedule_low_priority_values_first",
    "priority_scheduling_preemption_threshold",
    "cuda_graph_max_bs",
    "num_reserved_decode_tokens",
    "disaggregation_decode_polling_interval",
)
"""Fields of `engine.sglang` under SGLang's own names."""

_FIELDS: Final = {
    **{f"--{name.replace('_', '-')}": f"engine.sglang.{name}" for name in _OWN},
    "--tensor-parallel-size": "engine.tensor_parallel_size",
    "--quantization": "engine.quantization",
}


def _model_override(value: Any, mapped: Mapped, _command: Command) -> None:
    import json  # noqa: PLC0415 - rarely needed

    overrides = json.loads(value) if isinstance(value, str) else value
    if overrides:
        mapped.fields["model_overrides"] = overrides


def _disable_cuda_graph(value: Any, mapped: Mapped, _command: Command) -> None:
    if value:
        mapped.fields["engine.enforce_eager"] = True


def _data_parallel(value: Any, mapped: Mapped, command: Command) -> None:
    """Without DP attention, ranks are whole replicas behind a round-robin router."""
    if command.values.get("--enable-dp-attention"):
        mapped.unsupport("--data-parallel-size", value, "data-parallel attention of SGLang is not simulated")
    elif value and value > 1:
        mapped.fields["cluster.replicas"] = value


RULES: Final = Rules(
    fields=_FIELDS,
    handlers={
        "--model-path": name_model,
        "--json-model-override-args": _model_override,
        "--dtype": only(
            ("auto", "bfloat16", "float16", "half"),
            "engine.dtype",
            "--dtype",
            "32-bit serving is not simulated",
        ),
        "--kv-cache-dtype": only(
            ("auto", "fp8_e4m3", "fp8_e5m2"),
            "engine.kv_cache_dtype",
            "--kv-cache-dtype",
            "this type of KV cache is not simulated",
        ),
        "--disable-cuda-graph": _disable_cuda_graph,
        "--data-parallel-size": _data_parallel,
    },
    environment={},
    **without_fields("sglang"),
)
"""Every flag of 0.5.3 stands in exactly one class (tests/launch)."""

WRITERS: Final[Mapping[str, Callable[[Any], list[str]]]] = {
    "engine.dtype": lambda value: ["--dtype", value],
    "engine.kv_cache_dtype": lambda value: ["--kv-cache-dtype", value],
    "engine.enforce_eager": lambda value: ["--disable-cuda-graph"] if value else [],
}
"""How fields that no flag holds alone are written."""
