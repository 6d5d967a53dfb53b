"""What is wrong with an engine's choice of settings between vLLM and SGLang, and among those of SGLang."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from frontier.config.sglang import NO_CHUNKS, SGLANG_VERSIONS, Sglang
from frontier.errors import Issue, show_value

if TYPE_CHECKING:
    from frontier.config.engine import Engine
    from frontier.hardware import GpuSpec
    from frontier.models import ModelSpec

Known = Callable[..., bool]

SHARED_FIELDS: Final = frozenset(
    {
        "name",
        "version",
        "tensor_parallel_size",
        "dtype",
        "kv_cache_dtype",
        "cpu_overhead",
        "enforce_eager",
        "frontend",
        "quantization",
        "sampling",
        "step_time",
        "sglang",
    }
)
"""Fields of the engine section that mean the same for SGLang; all others are vLLM's."""

_KV_CACHE_DTYPES: Final = ("auto", "fp8_e4m3", "fp8_e5m2")
_ONE_POOL: Final = ("gpt_oss", "gemma")
"""Model types with sliding windows for which SGLang keeps one pool, as if all attention were full."""
_PAGED_ON_BLACKWELL: Final = ("gpt_oss",)


def named_engine_issues(engine: Engine, known: Known) -> list[Issue]:
    """Return the settings that are not of the engine that is named."""
    issues = []
    is_sglang = engine.name == "sglang"
    if known("engine.name", "engine.version") and (engine.version in SGLANG_VERSIONS) != is_sglang:
        owner = "vLLM" if is_sglang else "SGLang"
        message = f"was {show_value(engine.version)}, a version of {owner}, but engine.name is {engine.name}"
        issues.append(Issue("engine.version", engine.version, message, SGLANG_VERSIONS if is_sglang else ()))
    if not is_sglang:
        if engine.sglang is not None and known("engine.name", "engine.sglang"):
            message = f"has no effect on {engine.name}; remove it, or set engine.name to sglang"
            issues.append(Issue("engine.sglang", engine.sglang.model_dump(exclude_none=True), message))
        return issues
    for name, field in type(engine).model_fields.items():
        value = getattr(engine, name)
        if name not in SHARED_FIELDS and value != field.get_default() and known(f"engine.{name}"):
            message = f"was {_shown(value)}, has no effect on sglang; remove it ({_instead(name)})"
            issues.append(Issue(f"engine.{name}", _plain(value), message))
    if known("engine.kv_cache_dtype") and engine.kv_cache_dtype not in _KV_CACHE_DTYPES:
        message = f"was {show_value(engine.kv_cache_dtype)}, which sglang does not take"
        issues.append(Issue("engine.kv_cache_dtype", engine.kv_cache_dtype, message, _KV_CACHE_DTYPES))
    if known("engine.sglang"):
        issues += _without_effect(engine.sglang or Sglang())
    return issues


def sglang_model_issues(spec: ModelSpec, gpu: GpuSpec) -> list[Issue]:
    """Return why SGLang's scheduler would not be the one that is modelled for a model."""
    attentions = [group.attention for group in spec.layers for _ in range(group.count)]
    windows = [getattr(attention, "window", None) for attention in attentions]
    mixed = None in windows and any(window is not None for window in windows)
    if mixed and not spec.model_type.startswith(_ONE_POOL):
        message = (
            f"was {show_value(spec.name)}, mixes sliding windows with full attention: SGLang keeps a pool of"
            " KV slots for each, which is not modelled"
        )
        return [Issue("model", spec.name, message)]
    if any(getattr(attention, "indexer", None) is not None for attention in attentions):
        message = (
            f"was {show_value(spec.name)}, has sparse attention, which SGLang runs with page_size 64"
            " (modelled: 1)"
        )
        return [Issue("model", spec.name, message)]
    blackwell = gpu.compute_capability is not None and gpu.compute_capability.startswith("10.")
    if blackwell and spec.model_type.startswith(_PAGED_ON_BLACKWELL):
        message = (
            f"was {show_value(spec.name)}, which SGLang runs with page_size 64 on {gpu.name} (modelled: 1)"
        )
        return [Issue("model", spec.name, message)]
    return []


def sglang_warnings(sglang: Sglang) -> list[str]:
    """Return what SGLang does otherwise than its settings say."""
    warnings = []
    if sglang.radix_eviction_policy == "lfu":
        warnings.append(
            "engine.sglang.radix_eviction_policy: SGLang 0.5.3 never counts hits, so lfu equals lru"
        )
    if sglang.disable_radix_cache and sglang.schedule_policy in ("lpm", "dfs-weight"):
        policy = sglang.schedule_policy
        warnings.append(f"engine.sglang.schedule_policy: without the radix cache {policy} becomes fcfs")
    return warnings


def _without_effect(sglang: Sglang) -> list[Issue]:
    """Return the settings that need another one."""
    issues = []

    def report(name: str, message: str) -> None:
        issues.append(Issue(f"engine.sglang.{name}", getattr(sglang, name), message))

    if sglang.enable_mixed_chunk and sglang.chunked_prefill_size == NO_CHUNKS:
        report("enable_mixed_chunk", "was true without effect: chunked_prefill_size is -1")
    if sglang.disable_radix_cache and sglang.radix_eviction_policy is not None:
        report("radix_eviction_policy", "has no effect with disable_radix_cache; remove it")
    if not sglang.enable_priority_scheduling:
        if sglang.priority_scheduling_preemption_threshold is not None:
            report("priority_scheduling_preemption_threshold", "needs enable_priority_scheduling; remove it")
        if sglang.schedule_low_priority_values_first:
            report("schedule_low_priority_values_first", "needs enable_priority_scheduling; remove it")
    return issues


_SGLANG_NAMES: Final = {
    "gpu_memory_utilization": "engine.sglang.mem_fraction_static",
    "num_gpu_blocks_override": "engine.sglang.max_total_tokens",
    "block_size": "engine.sglang.page_size",
    "max_model_len": "engine.sglang.context_length",
    "max_num_batched_tokens": "engine.sglang.chunked_prefill_size and max_prefill_tokens",
    "max_num_scheduled_tokens": "engine.sglang.chunked_prefill_size and max_prefill_tokens",
    "max_num_seqs": "engine.sglang.max_running_requests",
    "max_num_active_seqs": "engine.sglang.max_running_requests",
    "enable_chunked_prefill": "engine.sglang.chunked_prefill_size: -1",
    "enable_prefix_caching": "engine.sglang.disable_radix_cache",
    "scheduling_policy": "engine.sglang.schedule_policy and enable_priority_scheduling",
    "cuda_graph": "engine.sglang.cuda_graph_max_bs",
    "async_scheduling": "engine.sglang.disable_overlap_schedule",
}


_NOT_MODELLED: Final = {
    "pipeline_parallel_size": "--pipeline-parallel-size",
    "data_parallel_size": "--data-parallel-size",
    "enable_expert_parallel": "--expert-parallel-size",
    "speculative": "--speculative-algorithm",
    "kv_tiers": "--enable-hierarchical-cache",
}
"""Fields for which SGLang has a setting of its own that is not modelled."""


def _instead(name: str) -> str:
    if name in _NOT_MODELLED:
        return f"SGLang's own {_NOT_MODELLED[name]} is not modelled"
    found = _SGLANG_NAMES.get(name)
    return "it is vLLM's" if found is None else f"SGLang has {found}"


def _shown(value: Any) -> str:
    return show_value(_plain(value))


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json", exclude_none=True) if hasattr(value, "model_dump") else value
