"""Encode clusters: a vision tower on instances of its own, before a prompt is computed (EPD disaggregation).

As vLLM's disaggregated encoder (0.12 to 0.32: `--ec-transfer-config`, `vllm/distributed/ec_transfer`;
SGLang's `--encoder-only` alike): an instance runs the tower alone, has neither language model nor KV cache,
and hands embeddings to the instance that computes the prompt. What is encoded is never cut: a step takes as
many images as its budget has embeddings for, which is `max_num_batched_tokens` but at least the largest
image, and so many the encoder cache holds (`vllm/v1/core/encoder_cache_manager.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from frontier.config.base import Section
from frontier.config.clusters import RoleCluster, plain_section
from frontier.config.engine import Engine
from frontier.config.fields import Duration
from frontier.config.kv_tiers import Bandwidth
from frontier.config.limits import effective_limits
from frontier.config.parallel import layout_of
from frontier.errors import ConfigError, Issue, show_value
from frontier.vllm_versions import VLLM_VERSIONS, minor_of

if TYPE_CHECKING:
    from frontier.config.dynamics import Dynamics
    from frontier.config.resolve import Examined, Parts
    from frontier.config.views import ClusterView
    from frontier.config.workload import Workload
    from frontier.hardware import GpuSpec
    from frontier.models import ModelSpec
    from frontier.models.spec import VisionTower

ENCODE: Final = "encode"
"""The role."""

RECEIVERS: Final = ("colocated", "prefill", "decode", "attention")
"""Roles of clusters that embeddings may go to."""

FIRST_MINOR: Final = 12
"""First minor version of vLLM that has encoders of their own."""

_KEPT: Final = frozenset(
    {
        *("name", "version", "tensor_parallel_size", "dtype", "gpu_memory_utilization", "performance_mode"),
        *("max_num_batched_tokens", "max_num_seqs", "async_scheduling", "step_time", "cpu_overhead"),
    }
)
"""Fields of an engine that mean something for an encoder."""

_WHOLE: Final = {"enable_chunked_prefill": False, "enable_prefix_caching": False}
"""What every encoder does: images are encoded whole, and nobody's twice for another."""

_WHY: Final = {
    "quantization": "vision towers stay in 16 bits",
    "enforce_eager": "vision towers are launched kernel by kernel",
    "cuda_graph": "vision towers are launched kernel by kernel",
    "data_parallel_size": "give more replicas",
    "frontend": "API servers of encoders are not modelled",
    "scheduling_policy": "images are encoded in order of arrival",
    "enable_chunked_prefill": "images are encoded whole",
    "enable_prefix_caching": "images that come again are not recognised",
}


class EmbeddingTransfer(Section):
    """How embeddings get from an encode cluster to the one that computes the prompt."""

    bandwidth: Bandwidth | None = None
    """Of the link of every transfer; transfers never wait for each other. Left out, what one network card of
    the slower GPU reaches."""
    latency: Duration | None = None
    """Of every transfer, before its first byte; left out, that of the slower GPU's network."""


def common_engine(top: Any, role: str) -> Any:
    """Return what a cluster of this role takes over from the engine at the top."""
    if role != ENCODE:
        return top
    plain = plain_section(Engine, {} if top is None else top)
    if not isinstance(plain, Mapping):
        return plain
    return {name: value for name, value in plain.items() if name in _KEPT} | _WHOLE


def entry_issues(
    entries: Sequence[RoleCluster | None], section: EmbeddingTransfer | None, num_models: int
) -> Iterator[Issue]:
    """Yield what means nothing in the clusters' own entries; None stands for a broken one."""
    known = [(index, entry) for index, entry in enumerate(entries) if entry is not None]
    if section is not None and not any(entry.role == ENCODE for _, entry in known):
        message = "has no effect without an encode cluster; remove it"
        yield Issue("disaggregation.embedding_transfer", section.model_dump(mode="json"), message)
    for index, entry in known:
        if entry.role != ENCODE:
            continue
        if num_models > 1:
            message = f"was '{ENCODE}': encoders are not modelled where several models are served"
            yield Issue(f"clusters.{index}.role", ENCODE, message)
        for field, value in (entry.engine or {}).items():
            if value is not None and field not in _KEPT:
                why = _WHY.get(field, "an encoder runs no language model and has no KV cache")
                message = f"was {show_value(value)}, has no effect: {why}; remove it"
                yield Issue(f"clusters.{index}.engine.{field}", value, message)
        overhead = (entry.engine or {}).get("cpu_overhead")
        for field in ("per_graph_launch", "per_graph_kernel"):
            if isinstance(overhead, Mapping) and overhead.get(field) is not None:
                value = overhead[field]
                message = f"was {show_value(value)}, has no effect: {_WHY['cuda_graph']}; remove it"
                yield Issue(f"clusters.{index}.engine.cpu_overhead.{field}", value, message)


def workload_issues(workload: Workload | None, roles: Sequence[str]) -> Iterator[Issue]:
    """Yield where requests bring images that nothing encodes, or encoders have nothing to do."""
    if workload is None:
        return
    synthetic, trace = workload.synthetic, workload.trace
    at, given = "workload.synthetic.encoder", None if synthetic is None else synthetic.encoder
    named = None if trace is None or trace.columns is None else trace.columns.encoder_tokens
    if given is not None and ENCODE not in roles:
        message = (
            "needs a cluster with the role encode: an engine that encodes images between its own steps is not"
            " modelled"
        )
        yield Issue(at, given.model_dump(mode="json", exclude_none=True), message)
    if named is not None and ENCODE not in roles:
        message = f"was {show_value(named)}, needs a cluster with the role encode"
        yield Issue("workload.trace.columns.encoder_tokens", named, message)
    if synthetic is not None and given is None and ENCODE in roles:
        message = "has no effect without workload.synthetic.encoder: no request has anything to encode"
        yield Issue(f"clusters.{list(roles).index(ENCODE)}.role", ENCODE, message)


def switch_issues(dynamics: Dynamics | None, views: Sequence[ClusterView]) -> Iterator[Issue]:
    """Yield replicas that would begin or cease to encode: they hold another part of the model."""
    names = {view.name for view in views if view.role == ENCODE}
    for index, event in enumerate(() if dynamics is None else dynamics.events):
        switch = event.switch_role
        if switch is not None and ({switch.to, event.cluster} & names):
            message = (
                f"was '{switch.to}': encoders hold a vision tower alone, so that replicas cannot change sides"
            )
            yield Issue(f"dynamics.events.{index}.switch_role.to", switch.to, message)


def link_issues(
    section: EmbeddingTransfer | None, encoders: Sequence[GpuSpec], receivers: Sequence[GpuSpec]
) -> Iterator[Issue]:
    """Yield why no link is known that embeddings go over."""
    if section is not None and section.bandwidth is not None:
        return
    for gpu in (*encoders, *receivers):
        if gpu.nic_bandwidth_bytes_per_s is None:
            message = f"was not given, and {gpu.name} has no network"
            yield Issue("disaggregation.embedding_transfer.bandwidth", None, message)
            return


def embeddings_plan(
    section: EmbeddingTransfer | None, encoders: Sequence[ClusterView], receivers: Sequence[ClusterView]
) -> dict[str, Any]:
    """Return the plan's `encodes`: what an encoder token amounts to, and the link it goes over."""
    section = section or EmbeddingTransfer()
    gpus = [view.facts.gpu for view in (*encoders, *receivers)]
    bandwidth, latency = section.bandwidth, section.latency
    if bandwidth is None:
        reached = [(gpu.nic_bandwidth_bytes_per_s or 0.0) * gpu.link_efficiency for gpu in gpus]
        bandwidth = min(reached)
    tower = encoders[0].facts.model.vision
    assert tower is not None
    return {
        "bytes_per_token": embedding_bytes(tower) / tower.merge,
        "latency_ns": max(gpu.nic_latency_ns for gpu in gpus) if latency is None else latency,
        "bytes_per_s": float(bandwidth),
    }


def embedding_bytes(tower: VisionTower) -> int:
    """Return the bytes of one embedding: towers run in 16 bits."""
    return tower.embedding_width * 2


def largest_item(workload: Workload | None) -> int | None:
    """Return the most encoder tokens of a synthetic request, None of a trace."""
    if workload is None or workload.synthetic is None or workload.synthetic.encoder is None:
        return None
    return workload.synthetic.encoder.tokens.bounds()[1]


def examine_encoder(
    parts: Parts, engine: Engine, *, spec: ModelSpec | None, gpu: GpuSpec | None, issues: list[Issue]
) -> Examined:
    """Check an encode cluster on its own; budgets in what follows are in the tower's tokens."""
    from frontier.config.resolve import Examined  # noqa: PLC0415 - which imports this module

    if engine.name != "vllm":
        message = f"was {engine.name}: encoders follow vLLM's rules alone"
        return Examined([*issues, Issue("engine.name", engine.name, message, ("vllm",))])
    if parts.known("engine.version") and minor_of(engine.version) < FIRST_MINOR:
        message = f"was {engine.version}, which has no encoders of their own"
        allowed = VLLM_VERSIONS[FIRST_MINOR - minor_of(VLLM_VERSIONS[0]) :]
        issues.append(Issue("engine.version", engine.version, message, allowed))
    if spec is not None and spec.vision is None:
        message = (
            f"was {show_value(parts.model)}, which has no vision_config: there is nothing to encode with"
        )
        issues.append(Issue("model", parts.model, message))
    needed = [f"engine.{name}" for name in _KEPT]
    if spec is None or gpu is None or spec.vision is None or not parts.known("hardware", *needed):
        return Examined(issues)
    if parts.workload is not None:
        issues += _prompt_issues(parts.workload, spec.vision)
    return _facts(parts, engine, spec, gpu, issues)


def _prompt_issues(workload: Workload, tower: VisionTower) -> Iterator[Issue]:
    """Yield where prompts would be shorter than the embeddings that they consist of."""
    synthetic, largest = workload.synthetic, largest_item(workload)
    if synthetic is None or largest is None:
        return
    embeddings, least = math.ceil(largest / tower.merge), synthetic.prompt_tokens.bounds()[0]
    if embeddings > least:
        message = (
            f"has prompts of {least} tokens, but the largest request to encode ({largest} tokens) becomes"
            f" {embeddings} of the prompt's tokens, {tower.merge} to one; prompts must be at least that long"
        )
        yield Issue("workload.synthetic.prompt_tokens", least, message)


def _facts(parts: Parts, engine: Engine, spec: ModelSpec, gpu: GpuSpec, issues: list[Issue]) -> Examined:
    from frontier.config.resolve import Examined, Resolved  # noqa: PLC0415 - which imports this module
    from frontier.memory.encoder import plan_encoder_memory  # noqa: PLC0415 - keeps `import frontier` light
    from frontier.memory.graphs import GraphCapture  # noqa: PLC0415
    from frontier.models.program import required_dtypes  # noqa: PLC0415
    from frontier.models.vision_program import tower_issues, tower_program  # noqa: PLC0415

    tower = spec.vision
    assert tower is not None
    assert parts.hardware is not None
    issues += tower_issues(tower, engine.tensor_parallel_size)
    limits = effective_limits(
        engine.model_copy(update={"enable_chunked_prefill": True}),
        model_max_len=spec.max_model_len,
        device_name=gpu.device_name,
        memory_bytes=gpu.memory_bytes,
    )
    try:
        layout = layout_of(engine, parts.hardware, spec, gpu)
    except ConfigError as error:
        return Examined([*issues, *error.issues])
    if issues or parts.broken or parts.cluster is None:
        return Examined(issues)
    stage = tuple(tower_program(spec, layout))
    if engine.step_time.knows_operators:
        lacking = gpu.unsupported_dtypes(required_dtypes(stage))
        if lacking:
            message = f"was {gpu.name}, which has no peak rate for {', '.join(lacking)}"
            return Examined([Issue("hardware.gpu", gpu.name, message)])
    budget = limits.max_num_batched_tokens * tower.merge
    largest = largest_item(parts.workload) or budget
    budget = encoder_budget(budget, largest)
    memory = plan_encoder_memory(
        spec,
        gpu,
        tensor_parallel_size=engine.tensor_parallel_size,
        weights_bytes=sum(operator.weight_bytes for operator in stage),
        tokens=budget,
        largest=largest,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        version=engine.version,
    )
    if memory.issues:
        return Examined(list(memory.issues), lacking=memory)
    price = parts.hardware.price_per_hour
    gpus = engine.tensor_parallel_size
    return Examined(
        [],
        Resolved(
            model=spec,
            gpu=gpu,
            max_model_len=largest + 1,
            max_num_batched_tokens=budget,
            max_num_seqs=limits.max_num_seqs,
            max_num_scheduled_tokens=None,
            block_size=tower.merge,
            num_blocks=memory.num_gpu_blocks,
            memory=memory,
            graphs=GraphCapture("none"),
            layout=layout,
            gpus_per_replica=gpus,
            gpus_total=gpus * parts.cluster.replicas,
            price_per_hour=gpu.price_per_hour_usd if price is None else price,
            stages=(stage,),
            warnings=(),
        ),
    )


def encoder_budget(budget: int, largest: int) -> int:
    """Return the encoder tokens of a step: at least one item, and the token that marks its end."""
    return max(budget, largest + 1)
