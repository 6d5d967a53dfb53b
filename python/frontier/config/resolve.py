"""What follows from a scenario: the model, the GPU, the engine's effective limits and its memory plan.

Everything is examined as far as possible even where parts are broken, so that one report names all problems.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from frontier.config import checks
from frontier.config.afd_facts import attention_layout, attention_memory, attention_stages, examine_ffn
from frontier.config.block_size import block_size_issues, paging_of
from frontier.config.cuda_graph import capture_size_issues, graph_capture
from frontier.config.drafts import (
    draft_cost_issues,
    draft_model_issues,
    draft_of,
    draft_warnings,
    stages_with_drafts,
)
from frontier.config.encode import ENCODE, examine_encoder
from frontier.config.engine import Engine
from frontier.config.kv_tier_checks import kv_tier_issues, resolve_kv_tiers
from frontier.config.limits import Limits, effective_limits, limit_issues, limit_warnings
from frontier.config.moe import moe_issues, moe_model_issues
from frontier.config.parallel import layout_of, parallel_issues, placement_issues, replica_gpus
from frontier.config.policy import policy_issues
from frontier.config.quantization import attends_in_fp8, quantized_model
from frontier.config.resolve_sglang import examine_sglang
from frontier.config.scheduler import batch_limits, fit_issues, scheduler_issues
from frontier.config.sections import Cluster, Hardware, Objectives
from frontier.config.sglang import SGLANG_VERSIONS
from frontier.config.speculative import speculative_issues
from frontier.config.versions import version_issues
from frontier.config.workload import Workload
from frontier.errors import ConfigError, Issue, show_value

if TYPE_CHECKING:
    from frontier.hardware import GpuSpec
    from frontier.memory import MemoryPlan
    from frontier.memory.graphs import GraphCapture
    from frontier.memory.sglang import SglangPlan
    from frontier.models import Layout, ModelSpec, Operator
    from frontier.models.draft import DraftProgram


@dataclass(frozen=True, slots=True)
class Resolved:
    """Facts that a scenario implies.

    Attributes:
        model: the model, with the engine's dtype.
        gpu: the GPU of every rank.
        max_model_len: longest prompt + output, in tokens.
        max_num_batched_tokens: token budget of a step.
        max_num_seqs: most running requests of a replica.
        max_num_scheduled_tokens: a smaller token budget for scheduling, None where there is none.
        block_size: tokens per KV block.
        num_blocks: KV blocks of a replica, the null block included.
        memory: how the GPU's memory is spent, and why that many blocks.
        graphs: the CUDA graphs that a replica captures.
        layout: how a replica, or one of its data parallel ranks that share nothing, is spread over its GPUs.
        gpus_per_replica: GPUs of one replica, all data parallel ranks included.
        gpus_total: GPUs of all replicas.
        price_per_hour: US dollars per GPU and hour, None where no price is known.
        stages: operators of one step on one rank of each pipeline stage, verification of drafts included.
        warnings: what a reader of the results should know.
        kv_tiers: the plan's `kv_tiers`, None without tiers below the device.
        draft: what drafting computes on a rank of the last stage, None without speculative decoding.
    """

    model: ModelSpec
    gpu: GpuSpec
    max_model_len: int
    max_num_batched_tokens: int
    max_num_seqs: int
    max_num_scheduled_tokens: int | None
    block_size: int
    num_blocks: int
    memory: MemoryPlan | SglangPlan
    graphs: GraphCapture
    layout: Layout
    gpus_per_replica: int
    gpus_total: int
    price_per_hour: float | None
    stages: tuple[tuple[Operator, ...], ...]
    warnings: tuple[str, ...]
    kv_tiers: dict[str, Any] | None = None
    draft: DraftProgram | None = None

    @property
    def program(self) -> tuple[Operator, ...]:
        """Operators of one step on one rank of each pipeline stage, one stage after the other."""
        return tuple(operator for stage in self.stages for operator in stage)

    @property
    def peak_flops_per_s(self) -> float | None:
        """Dense peak of one GPU in the type that most of a token's products are computed in, FLOP/s."""
        from frontier.models.operators import FusedMoe, Gemm  # noqa: PLC0415 - keeps `import frontier` light

        work: dict[str, float] = {}
        for operator in self.program:
            if isinstance(operator, Gemm | FusedMoe):
                done = operator.count * operator.flops_scale
                work[operator.dtype] = work.get(operator.dtype, 0.0) + done
        if not work:
            return None
        peak: float | None = self.gpu.peak_flops_per_s.to_plan()[max(work, key=lambda dtype: work[dtype])]
        return peak


@dataclass(frozen=True, slots=True)
class Parts:
    """The usable sections of a scenario, None where one is not, and the paths that are broken."""

    model: str | dict[str, Any] | None
    hardware: Hardware | None
    engine: Engine | None
    cluster: Cluster | None
    workload: Workload | None
    objectives: Objectives | None
    broken: frozenset[str]
    role: str = "colocated"

    @classmethod
    def of(cls, sections: Mapping[str, Any], broken: frozenset[str], role: str = "colocated") -> Parts:
        """Take the parts from sections by name; `role` is that of the cluster that they describe."""
        names = ("model", "hardware", "engine", "cluster", "workload", "objectives")
        return cls(**{name: sections.get(name) for name in names}, broken=broken, role=role)

    def known(self, *paths: str) -> bool:
        """Return whether none of the paths is broken, nor anything above or below it."""
        return not any(_overlap(path, bad) for path in paths for bad in self.broken)


@dataclass(frozen=True, slots=True)
class Examined:
    """What became of a scenario: its facts, or what is wrong with it.

    Attributes:
        issues: the problems found between and within sections.
        resolved: the facts, None where there are problems.
        lacking: the memory plan if its issues are the only ones found, else None.
    """

    issues: list[Issue]
    resolved: Resolved | None = None
    lacking: MemoryPlan | SglangPlan | None = None


def examine(parts: Parts) -> Examined:
    """Check the sections together."""
    issues: list[Issue] = []
    spec = _load_model(parts, issues)
    gpu = _load_gpu(parts, issues)
    engine = parts.engine
    spec = _quantized(parts, spec, gpu, issues)
    if engine is not None:
        issues += _engine_issues(parts, engine, spec)
    if parts.cluster is not None:
        issues += checks.cluster_issues(parts.cluster, engine, parts.workload, parts.known)
    if parts.workload is not None:
        issues += checks.workload_issues(parts.workload)
    if parts.objectives is not None:
        issues += checks.objective_issues(parts.objectives, parts.known)
    if engine is None:
        return Examined(issues)
    if parts.role == ENCODE:
        return examine_encoder(parts, engine, spec=spec, gpu=gpu, issues=issues)
    if engine.name == "sglang":
        layout = _layout(parts, engine, spec, gpu, issues)
        stages = _stages(parts, engine, spec, gpu, layout=layout, issues=issues)
        return examine_sglang(parts, engine, spec=spec, gpu=gpu, layout=layout, stages=stages, issues=issues)
    if engine.version in SGLANG_VERSIONS:
        return Examined(issues)
    if parts.role == "ffn":
        return examine_ffn(parts, engine, spec=spec, gpu=gpu, issues=issues)
    limits = _limits(parts, engine, spec, gpu)
    issues += limit_issues(
        engine,
        limits,
        lambda field: parts.known(f"engine.{field}"),
        model_max_len=spec.max_model_len if spec is not None else None,
    )
    if parts.known("engine.cuda_graph"):
        issues += capture_size_issues(engine, limits)
    layout = _layout(parts, engine, spec, gpu, issues)
    stages = _stages(parts, engine, spec, gpu, layout=layout, issues=issues)
    if spec is None or gpu is None or limits is None or layout is None or stages is None:
        return Examined(issues)
    draft = draft_of(
        engine,
        spec,
        gpu,
        layout,
        max_model_len=limits.max_model_len,
        known=parts.known,
        issues=issues,
    )
    stages = stages_with_drafts(stages, draft)
    planned = _memory(
        parts,
        engine,
        spec=spec,
        gpu=gpu,
        limits=limits,
        layout=layout,
        draft=draft,
        attention=stages if parts.role == "attention" else None,
        issues=issues,
    )
    if planned is None:
        return Examined(issues)
    memory, max_model_len = planned
    if memory.issues:
        return Examined([*issues, *memory.issues], lacking=None if issues or parts.broken else memory)
    if issues or parts.broken:
        return Examined(issues)
    limits = replace(limits, max_model_len=max_model_len)
    unfit = fit_issues(engine, max_model_len)
    if unfit:
        return Examined(unfit)
    facts = _facts(
        parts, limits, spec=spec, gpu=gpu, memory=memory, layout=layout, stages=stages, draft=draft
    )
    kv_tiers, issues = resolve_kv_tiers(
        engine,
        spec=spec,
        gpu=gpu,
        memory=memory,
        ranks=engine.tensor_parallel_size,
        replicas=parts.cluster.replicas if parts.cluster is not None else 1,
    )
    return Examined(issues) if issues else Examined([], replace(facts, kv_tiers=kv_tiers))


def _engine_issues(parts: Parts, engine: Engine, spec: ModelSpec | None) -> list[Issue]:
    """Return what is wrong with the engine's settings, on their own and with the model."""
    issues: list[Issue] = []
    issues += checks.engine_issues(engine, parts.known)
    issues += moe_issues(engine, parts.known)
    if parts.hardware is not None:
        issues += placement_issues(parts.hardware, engine, parts.known)
    if engine.name == "vllm":
        issues += parallel_issues(engine, spec, parts.known, lock_step=parts.role == "attention")
        issues += version_issues(engine, parts.known)
        issues += scheduler_issues(engine, parts.known)
        issues += policy_issues(engine, parts.objectives, parts.workload, parts.known)
        issues += speculative_issues(engine, parts.known)
        issues += kv_tier_issues(engine, parts.known)
        issues += draft_cost_issues(engine, parts.known)
    if spec is not None and engine.name == "vllm":
        issues += checks.kv_cache_manager_issues(engine, spec, parts.known)
        issues += draft_model_issues(engine, spec, parts.known)
    return issues


def _load_model(parts: Parts, issues: list[Issue]) -> ModelSpec | None:
    from frontier.config.model_source import load_model_section  # noqa: PLC0415 - keeps `import frontier` light

    if parts.model is None:
        return None
    try:
        spec = load_model_section(parts.model)
    except ConfigError as error:
        issues += error.issues
        return None
    engine = parts.engine
    if engine is None or engine.dtype == "auto":
        return spec
    return replace(spec, dtype="float16" if engine.dtype in ("half", "float16") else "bfloat16")


def _quantized(
    parts: Parts, spec: ModelSpec | None, gpu: GpuSpec | None, issues: list[Issue]
) -> ModelSpec | None:
    """Return the model as the engine holds it on this GPU; a bad choice is noted and left out."""
    engine = parts.engine
    if spec is None or engine is None or not parts.known("engine.quantization", "engine.version"):
        return spec
    sglang = engine.name == "sglang"
    spec, found = quantized_model(spec, engine.quantization, version=engine.version, gpu=gpu, sglang=sglang)
    issues += found
    return spec


def _load_gpu(parts: Parts, issues: list[Issue]) -> GpuSpec | None:
    from frontier.hardware import load_gpu  # noqa: PLC0415 - keeps `import frontier` light

    if parts.hardware is None:
        return None
    source = parts.hardware.gpu
    try:
        return load_gpu(source)
    except ConfigError as error:
        for issue in error.issues:
            if issue.path in ("", "hardware.gpu"):
                # What is wrong with a file as a whole is said of the file.
                of_file = error.source if isinstance(source, str) and not issue.path else None
                message, path = f"{of_file} {issue.message}" if of_file else issue.message, "hardware.gpu"
            elif isinstance(source, dict):
                message, path = issue.message, f"hardware.gpu.{issue.path}"
            else:
                message, path = f"{issue.path} of {error.source}: {issue.message}", "hardware.gpu"
            issues.append(Issue(path, issue.value, message, issue.allowed, issue.nearest))
        return None


def _limits(parts: Parts, engine: Engine, spec: ModelSpec | None, gpu: GpuSpec | None) -> Limits | None:
    """Return the effective limits, None where something they depend on is not known."""
    fields = (
        "version",
        "performance_mode",
        "max_model_len",
        "max_num_batched_tokens",
        "max_num_seqs",
        "enable_chunked_prefill",
        "speculative",
    )
    if spec is None or gpu is None or not parts.known(*(f"engine.{field}" for field in fields)):
        return None
    limits = effective_limits(
        engine, model_max_len=spec.max_model_len, device_name=gpu.device_name, memory_bytes=gpu.memory_bytes
    )
    own = batch_limits(engine, limits.max_model_len) if parts.known("engine.scheduler") else None
    if own is None:
        return limits
    return replace(limits, max_num_batched_tokens=max(own), max_num_seqs=own[1])


_LAYOUT_FIELDS = (
    "tensor_parallel_size",
    "pipeline_parallel_size",
    "pipeline_layer_partition",
    "data_parallel_size",
    "enable_expert_parallel",
    "decode_context_parallel_size",
    "prefill_context_parallel_size",
)


def _layout(
    parts: Parts, engine: Engine, spec: ModelSpec | None, gpu: GpuSpec | None, issues: list[Issue]
) -> Layout | None:
    """Return how a replica is spread over GPUs, None where there is no such layout."""
    known = parts.known("hardware", *(f"engine.{field}" for field in _LAYOUT_FIELDS))
    if spec is None or gpu is None or parts.hardware is None or not known:
        return None
    try:
        if parts.role == "attention":
            return attention_layout(engine, parts.hardware, gpu)
        return layout_of(engine, parts.hardware, spec, gpu)
    except ConfigError as error:
        issues += error.issues
        return None


def _stages(
    parts: Parts,
    engine: Engine,
    spec: ModelSpec | None,
    gpu: GpuSpec | None,
    *,
    layout: Layout | None,
    issues: list[Issue],
) -> tuple[tuple[Operator, ...], ...] | None:
    """Return the operators of a step, stage by stage, None where the model cannot run so."""
    from frontier.models import Layout, pipeline_stages  # noqa: PLC0415
    from frontier.models.kv import resolve_kv_cache_dtype  # noqa: PLC0415
    from frontier.models.program import required_dtypes, sampled_greedily  # noqa: PLC0415

    tp = engine.tensor_parallel_size
    if spec is None or not parts.known(
        "engine.tensor_parallel_size", "engine.dtype", "engine.kv_cache_dtype"
    ):
        return None
    count = len(issues)
    program: Sequence[Sequence[Operator]] = []
    try:
        # Where the layout is broken, the model is still checked with its tensor parallelism alone.
        layout = layout or Layout.on_one_node(tp)
        cache = resolve_kv_cache_dtype(spec, engine.kv_cache_dtype)
        if parts.role == "attention":
            in_fp8 = attends_in_fp8(gpu, cache)
            program = attention_stages(engine, spec, fp8_attention=in_fp8, issues=issues)
        else:
            issues += moe_model_issues(engine, spec, layout.expert_parallel_size, parts.known)
            program = pipeline_stages(
                spec,
                layout,
                weight_dtype="auto",
                kv_cache_dtype=engine.kv_cache_dtype,
                fp8_attention=attends_in_fp8(gpu, cache),
            )
    except ConfigError as error:
        issues += error.issues
    if gpu is None:
        return None
    if engine.sampling == "greedy":
        program = sampled_greedily(spec, program)
    if engine.step_time.knows_operators:
        dtypes = dict.fromkeys(dtype for stage in program for dtype in required_dtypes(stage))
        for dtype in gpu.unsupported_dtypes(dtypes):
            message = (
                f"was {show_value(parts.model)}, computes in {dtype}, for which {gpu.name} has no peak rate"
            )
            issues.append(Issue("model", parts.model, message))
    return tuple(map(tuple, program)) if len(issues) == count else None


def _block_size(engine: Engine, spec: ModelSpec, gpu: GpuSpec) -> int:
    """Return the tokens per block: the user's, else what vLLM's attention backend prefers."""
    if engine.block_size is not None:
        return engine.block_size
    return paging_of(spec, gpu, engine.kv_cache_dtype).default


def _memory(
    parts: Parts,
    engine: Engine,
    *,
    spec: ModelSpec,
    gpu: GpuSpec,
    limits: Limits,
    layout: Layout,
    draft: DraftProgram | None,
    attention: tuple[tuple[Operator, ...], ...] | None,
    issues: list[Issue],
) -> tuple[MemoryPlan, int] | None:
    """Return the memory plan and the longest context, None where it cannot be told.

    `attention` is the program of ranks that hold attention alone.
    """
    needed = (
        *("version", "gpu_memory_utilization", "block_size", "num_gpu_blocks_override"),
        *("cuda_graph", "enforce_eager"),
    )
    if not parts.known(*(f"engine.{field}" for field in needed)):
        return None
    if engine.block_size is not None:
        paging = paging_of(spec, gpu, engine.kv_cache_dtype)
        bad_size = block_size_issues(engine.block_size, paging, model=spec.name, gpu=gpu.name)
        if bad_size:
            issues += bad_size
            return None

    def plan(max_model_len: int | None) -> MemoryPlan:
        return _plan_memory(
            engine,
            max_model_len,
            spec=spec,
            gpu=gpu,
            limits=limits,
            layout=layout,
            draft=draft,
            attention=attention,
        )

    length = limits.max_model_len
    try:
        memory = plan(None if engine.max_model_len is None else length)
    except ConfigError as error:
        issues += error.issues
        return None
    if engine.max_model_len == "auto" and memory.issues:
        length = _longest(lambda tokens: not plan(tokens).issues, most=length)
        memory = plan(length)
    return memory, length


def _graphs(engine: Engine, spec: ModelSpec, gpu: GpuSpec, limits: Limits) -> GraphCapture:
    backend = paging_of(spec, gpu, engine.kv_cache_dtype).backend
    drafts = 0 if engine.speculative is None else engine.speculative.num_speculative_tokens
    return graph_capture(engine, spec, gpu, limits, backend=backend, num_speculative_tokens=drafts)


def _plan_memory(
    engine: Engine,
    max_model_len: int | None,
    *,
    spec: ModelSpec,
    gpu: GpuSpec,
    limits: Limits,
    layout: Layout,
    draft: DraftProgram | None,
    attention: tuple[tuple[Operator, ...], ...] | None,
) -> MemoryPlan:
    from frontier.memory import draft_layers, plan_kv_cache  # noqa: PLC0415

    held, weights = spec, None
    if attention is not None:
        held, weights = attention_memory(spec, attention)
    return plan_kv_cache(
        held,
        gpu,
        layout=layout,
        rank_weight_bytes=weights,
        block_size=_block_size(engine, spec, gpu),
        gpu_memory_utilization=engine.gpu_memory_utilization,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_num_seqs=limits.max_num_seqs,
        max_model_len=max_model_len,
        kv_cache_dtype=engine.kv_cache_dtype,
        num_gpu_blocks_override=engine.num_gpu_blocks_override,
        weight_dtype="auto",
        version=engine.version,
        draft=None if draft is None else draft_layers(draft),
        graphs=_graphs(engine, spec, gpu, limits),
        hybrid_kv_cache=checks.keeps_windows(engine, spec),
    )


def _longest(fits: Callable[[int], bool], *, most: int) -> int:
    """Return the largest length below `most` that fits, by bisection; 2 if none does."""
    low, high = 2, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _facts(
    parts: Parts,
    limits: Limits,
    *,
    spec: ModelSpec,
    gpu: GpuSpec,
    memory: MemoryPlan,
    layout: Layout,
    stages: tuple[tuple[Operator, ...], ...],
    draft: DraftProgram | None,
) -> Resolved:
    engine, cluster, hardware, workload = parts.engine, parts.cluster, parts.hardware, parts.workload
    assert engine is not None
    assert cluster is not None
    assert hardware is not None
    assert workload is not None
    warnings = [
        *limit_warnings(engine, limits, gpu),
        *memory.warnings,
        *draft_warnings(engine),
        *checks.workload_warnings(workload, limits.max_model_len),
    ]
    price = hardware.price_per_hour
    return Resolved(
        model=spec,
        gpu=gpu,
        max_model_len=limits.max_model_len,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_num_seqs=limits.max_num_seqs,
        max_num_scheduled_tokens=limits.max_num_scheduled_tokens,
        block_size=_block_size(engine, spec, gpu),
        num_blocks=memory.num_gpu_blocks,
        memory=memory,
        graphs=_graphs(engine, spec, gpu, limits),
        layout=layout,
        gpus_per_replica=replica_gpus(engine, layout),
        gpus_total=replica_gpus(engine, layout) * cluster.replicas,
        price_per_hour=gpu.price_per_hour_usd if price is None else price,
        stages=stages,
        warnings=tuple(warnings),
        draft=draft,
    )


def _overlap(path: str, other: str) -> bool:
    return path == other or path.startswith(f"{other}.") or other.startswith(f"{path}.")
