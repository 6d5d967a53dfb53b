"""What follows from attention and FFN clusters: programs, memory, and the units that they form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from frontier.config.afd import Afd
from frontier.config.cuda_graph import MAX_CAPTURE_TOKENS
from frontier.config.moe import moe_model_issues
from frontier.config.quantization import attends_in_fp8
from frontier.errors import ConfigError, Issue

if TYPE_CHECKING:
    from frontier.afd_lowering import AfdLayout, AfdTransfer
    from frontier.config.engine import Engine
    from frontier.config.resolve import Examined, Parts, Resolved
    from frontier.config.sections import Hardware
    from frontier.hardware import GpuSpec
    from frontier.memory.graphs import GraphCapture
    from frontier.models import Layout, ModelSpec, Operator

PATHS = {
    "attention_tensor_parallel_size": ("attention", "engine.tensor_parallel_size"),
    "attention_gpu": ("attention", "hardware.gpu"),
    "ffn_tensor_parallel_size": ("ffn", "engine.tensor_parallel_size"),
    "ffn_ranks": ("ffn", "engine.data_parallel_size"),
    "ffn_gpu": ("ffn", "hardware.gpu"),
    "redundant_experts": ("ffn", "engine.moe.eplb.num_redundant_experts"),
}
"""Fields of a scenario by the names of `frontier.afd_lowering`."""


@dataclass(frozen=True, slots=True)
class AfdUnit:
    """One replica of an attention cluster with its FFN ranks.

    Attributes:
        section: how both sides work together.
        engine: of the FFN ranks.
        facts: of the FFN ranks; `gpus_total` are those of all units.
        replicas: units.
        attention_ranks: data parallel ranks of the attention replica.
        attention_tensor_parallel_size: GPUs of each.
        name: of the FFN cluster.
        prefills: prompts are computed here as well.
    """

    section: Afd
    engine: Engine
    facts: Resolved
    replicas: int
    attention_ranks: int
    attention_tensor_parallel_size: int
    name: str
    prefills: bool = False

    @property
    def layout(self) -> AfdLayout:
        """Ranks of both sides."""
        from frontier.afd_lowering import AfdLayout  # noqa: PLC0415 - keeps `import frontier` light

        return AfdLayout(
            attention_ranks=self.attention_ranks,
            attention_tensor_parallel_size=self.attention_tensor_parallel_size,
            ffn_ranks=self.engine.data_parallel_size,
            ffn_tensor_parallel_size=self.engine.tensor_parallel_size,
            micro_batches=self.section.micro_batches,
            redundant_experts=redundant_experts(self.engine, self.facts.model),
        )

    def transfers(self, attention_gpu: GpuSpec) -> tuple[AfdTransfer, AfdTransfer]:
        """Return the ways to the FFN and back.

        Raises:
            ConfigError: a GPU without a known network, and no bandwidth was given.
        """
        from frontier.afd_lowering import AfdTransfer  # noqa: PLC0415 - keeps `import frontier` light

        section, gpus = self.section, (attention_gpu, self.facts.gpu)
        found = []
        for dtype in (section.a2f_dtype, section.f2a_dtype):
            if section.bandwidth is None:
                transfer = AfdTransfer.over_network(dtype, *gpus)
            else:
                transfer = AfdTransfer(
                    dtype=dtype,
                    latency_s=max(gpu.nic_latency_ns for gpu in gpus) / 1e9,
                    attention_bandwidth_bytes_per_s=section.bandwidth,
                    ffn_bandwidth_bytes_per_s=section.bandwidth,
                )
            if section.latency is not None:
                transfer = replace(transfer, latency_s=section.latency / 1e9)
            found.append(transfer)
        return found[0], found[1]


def redundant_experts(engine: Engine, spec: ModelSpec) -> int:
    """Return the copies of experts that FFN ranks hold; none of a model without."""
    if engine.moe is None or engine.moe.eplb is None or not spec.is_moe:
        return 0
    return engine.moe.eplb.num_redundant_experts


def attention_layout(engine: Engine, hardware: Hardware, gpu: GpuSpec) -> Layout:
    """Return how one attention rank is spread: attention ranks share nothing with each other.

    Raises:
        ConfigError: a rank that is larger than a node.
    """
    from frontier.models import Layout  # noqa: PLC0415 - keeps `import frontier` light

    node, size = hardware.gpus_per_node or gpu.gpus_per_node, engine.tensor_parallel_size
    if node > gpu.gpus_per_node:
        message = f"was {node}, but only {gpu.gpus_per_node} {gpu.name} share NVLink or a host"
        raise ConfigError(Issue("hardware.gpus_per_node", node, message))
    _check_node(size, node, gpu)
    return Layout(size, gpus_per_node=node)


def _check_node(size: int, node: int, gpu: GpuSpec) -> None:
    if size > node:
        message = f"was {size}, but a node has {node} {gpu.name}; an attention or FFN rank lies on one node"
        raise ConfigError(Issue("engine.tensor_parallel_size", size, message, (f"1 to {node}",)))


def attention_stages(
    engine: Engine, spec: ModelSpec, *, fp8_attention: bool, issues: list[Issue]
) -> Sequence[Sequence[Operator]]:
    """Return the operators of an attention rank by parts; none, with issues, where it cannot be cut so."""
    from frontier.models.afd_sides import attention_side  # noqa: PLC0415 - keeps `import frontier` light

    found = _cut_issues(spec, attention=engine.tensor_parallel_size)
    issues += found
    if found:
        return ()
    return attention_side(
        spec,
        engine.tensor_parallel_size,
        kv_cache_dtype=engine.kv_cache_dtype,
        fp8_attention=fp8_attention,
    )


def attention_memory(
    spec: ModelSpec, stages: tuple[tuple[Operator, ...], ...]
) -> tuple[ModelSpec, tuple[int, ...]]:
    """Return what a memory plan of an attention rank is made of: the model without FFN, and its weights."""
    from frontier.models.afd_sides import weight_bytes, without_ffn  # noqa: PLC0415

    return without_ffn(spec), (weight_bytes(stages),)


def _cut_issues(
    spec: ModelSpec, *, attention: int = 1, ffn: int = 1, ranks: int = 1, redundant: int = 0
) -> list[Issue]:
    """Return why a side cannot be cut so, under the names of the engine's fields."""
    from frontier.models.sharding import disaggregated_issues  # noqa: PLC0415

    found = disaggregated_issues(
        spec,
        attention_tensor_parallel_size=attention,
        ffn_tensor_parallel_size=ffn,
        ffn_ranks=ranks,
        redundant_experts=redundant,
    )
    return [replace(issue, path=PATHS[issue.path][1]) for issue in found]


def examine_ffn(
    parts: Parts, engine: Engine, *, spec: ModelSpec | None, gpu: GpuSpec | None, issues: list[Issue]
) -> Examined:
    """Check an FFN cluster on its own: whether its weights fit."""
    from frontier.config.resolve import Examined  # noqa: PLC0415 - which imports this module

    sizes = ("tensor_parallel_size", "data_parallel_size", "dtype", "moe", "gpu_memory_utilization")
    if spec is None or gpu is None or not parts.known(*(f"engine.{name}" for name in sizes)):
        return Examined(issues)
    try:
        _check_node(engine.tensor_parallel_size, gpu.gpus_per_node, gpu)
    except ConfigError as error:
        return Examined([*issues, *error.issues])
    copies = redundant_experts(engine, spec)
    ranks = engine.data_parallel_size
    found = _cut_issues(spec, ffn=engine.tensor_parallel_size, ranks=ranks, redundant=copies)
    found += moe_model_issues(engine, spec, ranks, parts.known)
    if issues or found or parts.broken:
        return Examined([*issues, *found])
    return _ffn_facts(parts, engine, spec=spec, gpu=gpu, copies=copies)


def _ffn_facts(parts: Parts, engine: Engine, *, spec: ModelSpec, gpu: GpuSpec, copies: int) -> Examined:
    from frontier.config.resolve import Examined, Resolved  # noqa: PLC0415 - which imports this module
    from frontier.memory.ffn import plan_ffn_memory  # noqa: PLC0415 - keeps `import frontier` light
    from frontier.memory.graphs import GraphCapture  # noqa: PLC0415
    from frontier.models import Layout  # noqa: PLC0415
    from frontier.models.afd_sides import ffn_side, weight_bytes  # noqa: PLC0415
    from frontier.models.program import required_dtypes  # noqa: PLC0415

    assert parts.cluster is not None
    assert parts.hardware is not None
    size, ranks = engine.tensor_parallel_size, engine.data_parallel_size
    stages = ffn_side(spec, size, ranks, copies)
    if engine.step_time.knows_operators:
        needed = dict.fromkeys(dtype for stage in stages for dtype in required_dtypes(stage))
        lacking = gpu.unsupported_dtypes(needed)
        if lacking:
            message = f"was {gpu.name}, which has no peak rate for {', '.join(lacking)}"
            return Examined([Issue("hardware.gpu", gpu.name, message)])
    memory = plan_ffn_memory(
        spec,
        gpu,
        tensor_parallel_size=size,
        weights_bytes=weight_bytes(stages),
        gpu_memory_utilization=engine.gpu_memory_utilization,
        version=engine.version,
    )
    if memory.issues:
        return Examined(list(memory.issues), lacking=memory)
    price = parts.hardware.price_per_hour
    return Examined(
        [],
        Resolved(
            model=spec,
            gpu=gpu,
            max_model_len=0,
            max_num_batched_tokens=0,
            max_num_seqs=0,
            max_num_scheduled_tokens=None,
            block_size=0,
            num_blocks=0,
            memory=memory,
            graphs=GraphCapture("none"),
            layout=Layout(size, gpus_per_node=gpu.gpus_per_node),
            gpus_per_replica=size * ranks,
            gpus_total=size * ranks * parts.cluster.replicas,
            price_per_hour=gpu.price_per_hour_usd if price is None else price,
            stages=stages,
            warnings=(),
        ),
    )


def with_batches(unit: AfdUnit, attention: Resolved) -> AfdUnit:
    """Return a unit whose FFN ranks know the largest batch: their graphs and their memory.

    It has `max_num_seqs` requests that decode, one token each; where units prefill, `max_num_batched_tokens`.
    """
    # keeps `import frontier` light
    from frontier.memory.ffn import MicroBatches, plan_ffn_memory  # noqa: PLC0415
    from frontier.models.afd_program import afd_classes  # noqa: PLC0415
    from frontier.models.afd_sides import ffn_side, weight_bytes  # noqa: PLC0415

    facts, layout = unit.facts, unit.layout
    size, ranks, copies = layout.ffn_tensor_parallel_size, layout.ffn_ranks, layout.redundant_experts
    stages = ffn_side(facts.model, size, ranks, copies)
    most = max(attention.max_num_seqs, attention.max_num_batched_tokens if unit.prefills else 0)
    rows = math.ceil(most / layout.micro_batches)
    a2f, f2a = unit.transfers(attention.gpu)
    classes = afd_classes(facts.model, layout.ffn_ranks, layout.redundant_experts)
    graphs = ffn_graphs(unit.engine, attention.graphs, layout.attention_ranks, rows)
    memory = plan_ffn_memory(
        facts.model,
        facts.gpu,
        tensor_parallel_size=layout.ffn_tensor_parallel_size,
        weights_bytes=weight_bytes(stages),
        gpu_memory_utilization=unit.engine.gpu_memory_utilization,
        version=unit.engine.version,
        batches=MicroBatches(
            count=layout.micro_batches,
            tokens=rows * layout.attention_ranks,
            destinations=max(each.destinations for each in classes),
            ranks=layout.ffn_ranks,
            bytes_per_element=a2f.bytes_per_element + f2a.bytes_per_element,
        ),
        graphs=graphs,
    )
    gpus = size * ranks
    facts = replace(
        facts,
        memory=memory,
        graphs=graphs,
        stages=stages,
        gpus_per_replica=gpus,
        gpus_total=gpus * unit.replicas,
    )
    return replace(unit, facts=facts)


def ffn_graphs(engine: Engine, attention: GraphCapture, ranks: int, rows: int) -> GraphCapture:
    """Return the CUDA graphs of FFN ranks: one for every size at which attention ranks have one.

    A layer with experts sees the micro-batches of all ranks at once, a dense one those of a rank after
    another; so there are the sizes of both, up to the one that holds the largest micro-batch of `rows`
    tokens of a rank.
    """
    from frontier.memory.graphs import GraphCapture  # noqa: PLC0415 - keeps `import frontier` light

    section = engine.cuda_graph
    if engine.enforce_eager or (section is not None and section.mode == "none"):
        return GraphCapture("none")
    if section is not None and section.capture_sizes is not None:
        return GraphCapture("full_decode_only", full_decode=section.capture_sizes)
    known = sorted({*attention.full_decode, *attention.full, *attention.piecewise})
    own = [size for before, size in zip([0, *known], known, strict=False) if before < rows]
    sizes = sorted({*own, *(size * ranks for size in own)})
    kept = tuple(size for size in sizes if size <= MAX_CAPTURE_TOKENS)
    return GraphCapture("full_decode_only" if kept else "none", full_decode=kept)


def step_time_issues(unit: AfdUnit, attention: Resolved, kv_cache_dtype: str) -> list[tuple[str, Issue]]:
    """Return why a unit's step cannot be priced, each with the role that it is said of."""
    from frontier.afd_lowering import afd_step_time  # noqa: PLC0415 - keeps `import frontier` light
    from frontier.models.kv import resolve_kv_cache_dtype  # noqa: PLC0415

    try:
        a2f, f2a = unit.transfers(attention.gpu)
        cache = resolve_kv_cache_dtype(attention.model, kv_cache_dtype)
        afd_step_time(
            attention.model,
            unit.layout,
            attention_gpu=attention.gpu,
            ffn_gpu=unit.facts.gpu,
            a2f=a2f,
            f2a=f2a,
            kv_cache_dtype=kv_cache_dtype,
            fp8_attention=attends_in_fp8(attention.gpu, cache),
        )
    except ConfigError as error:
        found = []
        for issue in error.issues:
            role, path = PATHS.get(issue.path, ("attention", issue.path))
            found.append((role, replace(issue, path=path)))
        return found
    return []
