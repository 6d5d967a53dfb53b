"""Parallelism inside a replica: its fields, what follows from them, and what no engine could do."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

from pydantic import BeforeValidator, Field, WithJsonSchema

from frontier.config.base import Section
from frontier.config.fields import Flag, Positive, parse_whole
from frontier.config.moe import layout_settings
from frontier.errors import ConfigError, Issue, show_value
from frontier.vllm_versions import minor_of

if TYPE_CHECKING:
    from frontier.config.engine import Engine
    from frontier.config.sections import Hardware
    from frontier.hardware import GpuSpec
    from frontier.models import Layout, ModelSpec

MAX_DATA_PARALLEL_SIZE: Final = 1024
SNAPSHOT_INTERVAL_NS: Final = 100_000_000
"""Interval at which vLLM's coordinator publishes queue lengths (`vllm/v1/engine/coordinator.py`)."""

Known = Callable[..., bool]
Ranks = Annotated[int, Field(ge=1, le=MAX_DATA_PARALLEL_SIZE), BeforeValidator(parse_whole)]


def parse_partition(value: object) -> tuple[int, ...]:
    """Read layers per pipeline stage: a list, or numbers joined by commas as in VLLM_PP_LAYER_PARTITION."""
    parts: Any = value
    if isinstance(value, str):
        parts = [int(part) if part.strip().isdigit() else part for part in value.split(",")]
    if not isinstance(parts, list | tuple) or not parts:
        raise ValueError(f"was {show_value(value)}, must be a list of layers per stage, such as [17, 15]")
    return tuple(parse_whole(part) for part in parts)


class Parallelism(Section):
    """Fields of the engine that spread one replica over GPUs, under vLLM's names."""

    pipeline_parallel_size: Positive = 1
    """Stages of consecutive layers."""
    pipeline_layer_partition: (
        Annotated[
            tuple[int, ...],
            BeforeValidator(parse_partition),
            WithJsonSchema(
                {
                    "anyOf": [
                        {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1},
                        {"type": "string", "pattern": "^[0-9]+(,[0-9]+)*$"},
                    ]
                }
            ),
        ]
        | None
    ) = None
    """Layers of each stage (VLLM_PP_LAYER_PARTITION); left out, vLLM's split: even, with what is left over on
    the last stages but the very last."""
    data_parallel_size: Ranks = 1
    """Engines of a replica, each with a scheduler and a KV cache of its own; with experts they share these
    and step together."""
    data_parallel_size_local: Ranks | None = None
    """Data parallel ranks of one node, which its load balancer sees (data_parallel_hybrid_lb alone); left
    out, as many as the node has GPUs for."""
    data_parallel_external_lb: Flag = False
    """The cluster's router sees every data parallel rank, instead of the engine spreading requests over
    them."""
    data_parallel_hybrid_lb: Flag = False
    """The cluster's router sees every node, and its engines spread requests over the ranks on it."""
    api_server_count: Positive | None = None
    """API servers, each of which spreads its requests over the ranks as if it were alone; left out, the
    version's default (from 0.15, one per rank that it sees)."""
    dp_sync_interval: Positive | None = None
    """Steps between agreements of data parallel ranks on whether any has work left; left out, the version's
    (32, and 16 from 0.30)."""
    prefill_schedule_interval: Positive = 1
    """Steps of data parallel ranks in lock step from one that may compute prompts to the next, while others
    decode."""
    enable_expert_parallel: Flag = False
    """Spread whole experts over the data and tensor parallel ranks, instead of cutting every expert."""
    decode_context_parallel_size: Positive = 1
    """Tensor parallel ranks that divide the tokens of KV heads between them instead of holding copies."""
    prefill_context_parallel_size: Positive = 1
    """Ranks that share the tokens of every prompt, each with all weights of its stage."""


def in_lock_step(engine: Engine, spec: ModelSpec) -> bool:
    """Return whether data parallel ranks step together: with experts; without, up to 0.13."""
    return engine.data_parallel_size > 1 and (spec.is_moe or minor_of(engine.version) < 14)


def layout_of(engine: Engine, hardware: Hardware, spec: ModelSpec, gpu: GpuSpec) -> Layout:
    """Return how the ranks that share a model are spread.

    Data parallel ranks without experts share nothing: the layout is then that of one of them.

    Raises:
        ConfigError: sizes that no layout has, or a network that is not known.
    """
    from frontier.models import Layout  # noqa: PLC0415 - keeps `import frontier` light

    layout = Layout(
        tensor_parallel_size=engine.tensor_parallel_size,
        pipeline_parallel_size=engine.pipeline_parallel_size,
        data_parallel_size=engine.data_parallel_size if spec.is_moe else 1,
        enable_expert_parallel=engine.enable_expert_parallel,
        gpus_per_node=hardware.gpus_per_node or gpu.gpus_per_node,
        pipeline_layer_partition=engine.pipeline_layer_partition,
        decode_context_parallel_size=engine.decode_context_parallel_size,
        prefill_context_parallel_size=engine.prefill_context_parallel_size,
        placement=hardware.placement or "tp_pp_dp",
        **(layout_settings(engine) if spec.is_moe else {}),
    )
    if layout.gpus_per_node > gpu.gpus_per_node:
        message = (
            f"was {layout.gpus_per_node}, but only {gpu.gpus_per_node} {gpu.name} share NVLink or a host;"
            " give another GPU file if yours differ"
        )
        raise ConfigError(Issue("hardware.gpus_per_node", layout.gpus_per_node, message))
    if layout.tensor_parallel_size > layout.gpus_per_node and gpu.nic_bandwidth_bytes_per_s is None:
        tp, node = layout.tensor_parallel_size, f"a node has {layout.gpus_per_node} {gpu.name}"
        message = f"was {tp}, but {node}, and the network between nodes is not known"
        raise ConfigError(Issue("engine.tensor_parallel_size", tp, message))
    gpu.links(layout.gpus, layout.nodes)
    return layout


def replica_gpus(engine: Engine, layout: Layout) -> int:
    """Return the GPUs of one replica, data parallel ranks without experts included."""
    return layout.gpus * (engine.data_parallel_size // layout.data_parallel_size)


def parallel_issues(
    engine: Engine, spec: ModelSpec | None, known: Known, *, lock_step: bool = False
) -> list[Issue]:
    """Return fields without effect, and combinations that are not modelled.

    With `lock_step` ranks step together whatever the model is, as for `data_parallel_plan`.
    """
    issues: list[Issue] = []

    def report(field: str, message: str, allowed: tuple[str, ...] = ()) -> None:
        if known(f"engine.{field}"):
            issues.append(Issue(f"engine.{field}", getattr(engine, field), message, allowed))

    if not known("engine.data_parallel_size", "engine.pipeline_parallel_size", "engine.version"):
        return issues
    size, version = engine.data_parallel_size, minor_of(engine.version)
    external, hybrid = engine.data_parallel_external_lb, engine.data_parallel_hybrid_lb
    given = {
        "data_parallel_external_lb": external,
        "data_parallel_hybrid_lb": hybrid,
        "data_parallel_size_local": engine.data_parallel_size_local is not None,
        "api_server_count": engine.api_server_count is not None,
        "dp_sync_interval": engine.dp_sync_interval is not None,
        "prefill_schedule_interval": engine.prefill_schedule_interval > 1,
    }
    for field in (name for name, is_given in given.items() if is_given):
        value = show_value(getattr(engine, field))
        if size == 1:
            report(field, f"was {value}, has no effect with data_parallel_size 1; remove it")
        elif (
            field in ("dp_sync_interval", "prefill_schedule_interval")
            and spec
            and not (lock_step or in_lock_step(engine, spec))
        ):
            report(field, f"was {value}, has no effect: ranks of {spec.name} do not step together; remove it")
    if external and hybrid:
        report("data_parallel_hybrid_lb", "was true, but data_parallel_external_lb is as well; choose one")
    local = engine.data_parallel_size_local
    if local is not None and size > 1:
        if not hybrid:
            report(
                "data_parallel_size_local",
                f"was {local}, has no effect without data_parallel_hybrid_lb; remove it",
            )
        elif size % local or local == size:
            report(
                "data_parallel_size_local",
                f"was {local}, must divide data_parallel_size ({size}) and be less",
            )
    if engine.api_server_count is not None and external and size > 1:
        report(
            "api_server_count", "has no effect: behind an external load balancer each rank has one; remove it"
        )
    for field, since in (("dp_sync_interval", 30), ("prefill_schedule_interval", 24)):
        if given[field] and size > 1 and version < since:
            report(
                field, f"was {show_value(getattr(engine, field))}, vLLM {engine.version} has no such setting"
            )
    if engine.pipeline_layer_partition is not None and engine.pipeline_parallel_size == 1:
        report("pipeline_layer_partition", "has no effect with pipeline_parallel_size 1; remove it")
    return issues


def placement_issues(hardware: Hardware, engine: Engine, known: Known) -> list[Issue]:
    """Return placements that change nothing."""
    if hardware.placement is None or not known("hardware.placement", "engine.pipeline_parallel_size"):
        return []
    if engine.pipeline_parallel_size > 1 and engine.data_parallel_size > 1:
        return []
    message = "has no effect without pipeline and data parallelism at once; remove it"
    return [Issue("hardware.placement", hardware.placement, message)]


def ranks_per_balancer(engine: Engine, layout: Layout) -> int:
    """Return the data parallel ranks that one of the engine's own load balancers sees."""
    size = engine.data_parallel_size
    if engine.data_parallel_external_lb:
        return 1
    if not engine.data_parallel_hybrid_lb:
        return size
    if engine.data_parallel_size_local is not None:
        return engine.data_parallel_size_local
    local = max(1, layout.gpus_per_node * size // replica_gpus(engine, layout))
    return min(size, local)


def data_parallel_plan(
    engine: Engine, spec: ModelSpec, layout: Layout, *, lock_step: bool = False
) -> dict[str, Any] | None:
    """Return the plan's `DataParallelSpec` (rust/frontier-core/src/plan/data_parallel.rs), None for one rank.

    With `lock_step` ranks step together whatever the model is: attention ranks that share FFN ranks.
    Rules by version: `vllm/v1/engine/{core,core_client}.py`, `vllm/entrypoints/cli/serve.py`.
    """
    size, version = engine.data_parallel_size, minor_of(engine.version)
    if size == 1:
        return None
    local = ranks_per_balancer(engine, layout)
    servers = engine.api_server_count or (local if version >= 15 else 1)
    drafts = 0 if engine.speculative is None else engine.speculative.num_speculative_tokens
    together = None
    if lock_step or in_lock_step(engine, spec):
        together = {
            "dummy_tokens": 1 + (drafts if version >= 20 else 0),
            "sync_interval": engine.dp_sync_interval or (16 if version >= 30 else 32),
            "sync_at_first_step": version >= 30,
            "pad_to_largest": version <= 16,
            "prefill_schedule_interval": engine.prefill_schedule_interval,
        }
    return {
        "size": size,
        "ranks_per_balancer": local,
        "balancer": {
            "kind": "vllm_scores",
            "api_servers": servers,
            "snapshot_interval_ns": SNAPSHOT_INTERVAL_NS,
            "score": "in_flight" if version >= 27 else "queues",
            "rotating": version >= 25,
        },
        "lock_step": together,
    }
