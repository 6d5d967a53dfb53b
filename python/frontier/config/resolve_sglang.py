"""What follows from a scenario with an SGLang engine: limits, KV pool, settings of the scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from frontier.config.sglang import DEFAULT_PREEMPTION_THRESHOLD, NO_CHUNKS, Sglang
from frontier.config.sglang_checks import sglang_model_issues, sglang_warnings
from frontier.config.sglang_handover import colocated_issues, with_part
from frontier.errors import ConfigError, DoesNotFitError, Issue

if TYPE_CHECKING:
    from frontier.config.engine import Engine
    from frontier.config.resolve import Examined, Parts, Resolved
    from frontier.hardware import GpuSpec
    from frontier.memory.graphs import GraphCapture
    from frontier.memory.sglang import SglangPlan
    from frontier.models import Layout, ModelSpec, Operator

_OUTPUT_ROOM = 2
"""Slots of the longest request that neither prompt nor output may take."""


def examine_sglang(
    parts: Parts,
    engine: Engine,
    *,
    spec: ModelSpec | None,
    gpu: GpuSpec | None,
    layout: Layout | None,
    stages: tuple[tuple[Operator, ...], ...] | None,
    issues: list[Issue],
) -> Examined:
    """Check what vLLM's rules do not cover, and derive the facts."""
    from frontier.config.resolve import Examined  # noqa: PLC0415 - which imports this module

    if spec is None or gpu is None or layout is None or stages is None:
        return Examined(issues)
    issues += sglang_model_issues(spec, gpu)
    if not parts.known("engine.sglang"):
        return Examined(issues)
    sglang = engine.sglang or Sglang()
    if parts.role == "colocated":
        issues += colocated_issues(sglang)
    given = sglang.context_length
    if given is not None and given > spec.max_model_len:
        message = f"was {given}, the model allows at most {spec.max_model_len}"
        issues.append(Issue("engine.sglang.context_length", given, message))
    if issues:
        return Examined(issues)
    try:
        memory = _pool(engine, sglang, spec, gpu)
    except DoesNotFitError as error:
        lacking = None if parts.broken else error.memory
        return Examined(list(error.issues), lacking=lacking)
    except ConfigError as error:
        return Examined([*issues, *(_placed(issue) for issue in error.issues)])
    if memory.max_req_input_len < 1:
        pool = memory.max_total_num_tokens
        if memory.context_length <= pool:
            message = f"a context of {memory.context_length} tokens leaves no room for a prompt"
            issues.append(Issue("engine.sglang.context_length", given, message))
        else:
            message = f"the KV pool of {pool} tokens is too small for any prompt"
            issues.append(Issue("engine.sglang.max_total_tokens", sglang.max_total_tokens, message))
    if issues or parts.broken:
        return Examined(issues)
    facts = _facts(parts, engine, sglang, spec=spec, gpu=gpu, layout=layout, stages=stages, memory=memory)
    return Examined([], facts)


def sglang_scheduler(engine: Engine, resolved: Resolved, role: str) -> dict[str, Any]:
    """Return the scheduler settings of a plan for a server of a cluster with a role."""
    from frontier.memory.sglang import SglangPlan  # noqa: PLC0415 - keeps `import frontier` light

    sglang, memory = engine.sglang or Sglang(), resolved.memory
    assert isinstance(memory, SglangPlan)
    chunk = memory.chunked_prefill_size
    threshold = sglang.priority_scheduling_preemption_threshold
    settings = {
        "kind": "sglang",
        "max_total_tokens": memory.max_total_num_tokens,
        "max_running_requests": memory.max_running_requests,
        "context_length": memory.context_length,
        "chunked_prefill_size": None if chunk == NO_CHUNKS else chunk,
        "max_prefill_tokens": sglang.max_prefill_tokens,
        "schedule_policy": sglang.schedule_policy,
        "schedule_conservativeness": sglang.schedule_conservativeness,
        "disable_radix_cache": sglang.disable_radix_cache,
        "radix_eviction_policy": sglang.radix_eviction_policy or "lru",
        "enable_mixed_chunk": sglang.enable_mixed_chunk,
        "disable_overlap_schedule": sglang.disable_overlap_schedule,
        "enable_priority_scheduling": sglang.enable_priority_scheduling,
        "priority_scheduling_preemption_threshold": (
            DEFAULT_PREEMPTION_THRESHOLD if threshold is None else threshold
        ),
        "schedule_low_priority_values_first": sglang.schedule_low_priority_values_first,
    }
    return with_part(settings, sglang, role)


def _pool(engine: Engine, sglang: Sglang, spec: ModelSpec, gpu: GpuSpec) -> SglangPlan:
    from frontier.memory.sglang import plan_token_pool  # noqa: PLC0415 - keeps `import frontier` light

    return plan_token_pool(
        spec,
        gpu,
        tensor_parallel_size=engine.tensor_parallel_size,
        context_len=sglang.context_length,
        page_size=sglang.page_size,
        fraction=sglang.mem_fraction_static,
        max_running_requests=sglang.max_running_requests,
        kv_cache_dtype=engine.kv_cache_dtype,
        chunked_prefill_size=sglang.chunked_prefill_size,
        cuda_graph_max_bs=sglang.cuda_graph_max_bs,
        max_total_tokens=sglang.max_total_tokens,
    )


def _placed(issue: Issue) -> Issue:
    """Return an issue of the memory plan at the field of the scenario that it is about."""
    own = ("mem_fraction_static", "chunked_prefill_size", "cuda_graph_max_bs", "max_running_requests")
    names = {name: f"engine.sglang.{name}" for name in own} | {"memory_mib": "hardware.gpu"}
    path = names.get(issue.path, issue.path)
    return Issue(path, issue.value, issue.message, issue.allowed, issue.nearest)


def _graphs(engine: Engine, memory: SglangPlan) -> GraphCapture:
    """Return the graphs of SGLang 0.5.3: of decodes alone; prefills and mixed batches run without."""
    from frontier.memory.graphs import GraphCapture, sglang_capture_sizes  # noqa: PLC0415

    if engine.enforce_eager:
        return GraphCapture("none")
    sizes = sglang_capture_sizes(memory.cuda_graph_max_bs, num_slots=memory.max_running_requests)
    return GraphCapture("full_decode_only", full_decode=tuple(sizes))


def _facts(
    parts: Parts,
    engine: Engine,
    sglang: Sglang,
    *,
    spec: ModelSpec,
    gpu: GpuSpec,
    layout: Layout,
    stages: tuple[tuple[Operator, ...], ...],
    memory: SglangPlan,
) -> Resolved:
    from frontier.config.resolve import Resolved  # noqa: PLC0415 - which imports this module

    assert parts.cluster is not None
    assert parts.hardware is not None
    chunk = memory.chunked_prefill_size
    price = parts.hardware.price_per_hour
    return Resolved(
        model=spec,
        gpu=gpu,
        max_model_len=min(memory.context_length, memory.max_total_num_tokens) - _OUTPUT_ROOM,
        max_num_batched_tokens=sglang.max_prefill_tokens if chunk == NO_CHUNKS else chunk,
        max_num_scheduled_tokens=None,
        max_num_seqs=memory.max_running_requests,
        block_size=1,
        num_blocks=memory.max_total_num_tokens + 1,  # slot 0 takes what padding writes
        memory=memory,
        graphs=_graphs(engine, memory),
        layout=layout,
        gpus_per_replica=layout.gpus,
        gpus_total=layout.gpus * parts.cluster.replicas,
        price_per_hour=gpu.price_per_hour_usd if price is None else price,
        stages=stages,
        warnings=(*sglang_warnings(sglang), *memory.warnings),
    )
