"""Units of attention and FFN clusters: their section, and what of an engine means nothing there.

One replica of an attention cluster and the FFN ranks of its own are a unit: the attention ranks are the data
parallel ranks of that replica, each with a scheduler and a KV cache, in lock step; the FFN ranks
(`data_parallel_size` of `tensor_parallel_size` GPUs) have neither requests nor a cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field

from frontier.config.base import Section
from frontier.config.clusters import RoleCluster, is_given
from frontier.config.engine import Engine
from frontier.config.fields import Duration, parse_whole
from frontier.config.kv_tiers import Bandwidth
from frontier.config.sections import Hardware, Router
from frontier.errors import Issue, show_value

if TYPE_CHECKING:
    from frontier.config.resolve import Resolved

AFD_ROLES: Final = ("attention", "ffn")
MAX_MICRO_BATCHES: Final = 64

ActivationDtype = Literal["bf16", "fp8"]

Known = Callable[..., bool]


class Afd(Section):
    """How attention and FFN ranks of a unit work together in a step."""

    micro_batches: Annotated[int, Field(ge=1, le=MAX_MICRO_BATCHES), BeforeValidator(parse_whole)] = 3
    """Parts of every attention rank's batch, as equal in tokens as can be, which go round attention, link,
    FFN and link one after the other."""
    a2f_dtype: ActivationDtype = "bf16"
    """How activations travel to the FFN: in 16 bits, or in fp8 with a 32-bit scale per 128."""
    f2a_dtype: ActivationDtype = "bf16"
    """And back."""
    latency: Duration | None = None
    """Of every such transfer; left out, that of the slower GPU's network."""
    bandwidth: Bandwidth | None = None
    """Of each GPU of either side in each direction, all of which is reached; left out, what both GPUs'
    networks reach."""


_NO_REQUESTS: Final = "FFN ranks have no requests, no scheduler and no KV cache"

_FFN_FIELDS: Final = frozenset(
    {
        *("name", "version", "tensor_parallel_size", "data_parallel_size", "pipeline_parallel_size"),
        *("dtype", "quantization", "gpu_memory_utilization", "enforce_eager"),
        *("cuda_graph.mode", "cuda_graph.capture_sizes"),
        *("moe.routing", "moe.sampling", "moe.drift", "moe.expert_placement_strategy"),
        *("moe.shared_experts_stream_token_threshold", "speculative"),
        *("moe.eplb.window_size", "moe.eplb.step_interval", "moe.eplb.num_redundant_experts"),
        "moe.eplb.use_async",
        *(f"cpu_overhead.per_{each}" for each in ("kernel_launch", "graph_launch", "graph_kernel")),
        "step_time",
    }
)
"""Fields of an engine that mean something for FFN ranks, or are refused for a reason of their own."""

_OPEN: Final = ("cuda_graph", "moe", "moe.eplb", "cpu_overhead")
"""Sections of which only some fields do."""

_WITHOUT_EFFECT: Final = {
    "moe": "experts are those of the FFN cluster: give it there",
    "enable_expert_parallel": "attention ranks have no experts",
    "sampling": "attention ranks sample at random: nothing else is modelled",
}
"""Fields of an engine that mean nothing for attention ranks."""


def entry_issues(
    entries: Sequence[RoleCluster | None], section: Afd | None, top: Engine | None
) -> list[Issue]:
    """Return what means nothing in the clusters' own entries; None stands for a broken one.

    Where there are no other clusters, the engine at the top must not have what means nothing to both sides.
    """
    issues: list[Issue] = []
    known = [(index, entry) for index, entry in enumerate(entries) if entry is not None]
    if section is not None and not any(entry.role in AFD_ROLES for _, entry in known):
        message = "has no effect without attention and ffn clusters; remove it"
        issues.append(Issue("disaggregation.afd", section.model_dump(mode="json"), message))
    for index, entry in known:
        if entry.role in AFD_ROLES:
            issues += _own_issues(f"clusters.{index}", entry)
    if top is not None and all(entry is not None and entry.role in AFD_ROLES for entry in entries):
        given = top.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        issues += [
            _without_effect(f"engine.{field}", value, f"{why}, and FFN ranks take no such setting")
            for field, value in _given(given)
            if (why := _WITHOUT_EFFECT.get(field.partition(".")[0])) is not None
        ]
    return issues


def _own_issues(path: str, entry: RoleCluster) -> Iterator[Issue]:
    if entry.role == "attention":
        for field, why in _WITHOUT_EFFECT.items():
            if is_given(entry.engine, Engine, field) and (entry.engine or {}).get(field) is not None:
                value = (entry.engine or {})[field]
                yield _without_effect(f"{path}.engine.{field}", value, why)
        return
    for field, value in _given(entry.engine or {}):
        why = _NO_REQUESTS
        if field == "enable_expert_parallel":
            why = (
                "whole experts are spread over data_parallel_size ranks, and each is cut over the GPUs of one"
            )
        if field.startswith("cpu_overhead"):
            why = "the hosts of attention ranks prepare steps"
        if field.startswith("moe"):
            why = "FFN ranks get their tokens from attention ranks alone, in micro-batches"
        yield _without_effect(f"{path}.engine.{field}", value, why)
    for field in ("gpus_per_node", "placement"):
        if is_given(entry.hardware, Hardware, field):
            why = "an FFN rank lies on one node of its GPUs, and no KV reaches it"
            yield _without_effect(f"{path}.hardware.{field}", (entry.hardware or {}).get(field), why)
    if entry.router != Router():
        yield _without_effect(f"{path}.router", entry.router.policy, _NO_REQUESTS)
    if entry.weight is not None:
        yield _without_effect(f"{path}.weight", entry.weight, _NO_REQUESTS)
    if entry.in_service is not None:
        yield _without_effect(f"{path}.in_service", entry.in_service, _NO_REQUESTS)


def _given(plain: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the fields of an FFN cluster's own engine that mean nothing there."""
    for name, value in plain.items():
        field = f"{prefix}{name}"
        if value is None or field in _FFN_FIELDS:
            continue
        if field in _OPEN and isinstance(value, dict):
            yield from _given(value, f"{field}.")
        elif field not in _OPEN:
            yield field, value


def _without_effect(path: str, value: object, why: str) -> Issue:
    return Issue(path, value, f"was {show_value(value)}, has no effect: {why}; remove it")


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A setting of an engine that is not modelled with attention and FFN apart, wherever it stands."""

    path: str
    applies: Callable[[Engine], bool]
    message: str
    allowed: tuple[str, ...] = ()
    roles: tuple[str, ...] = AFD_ROLES


_REFUSALS: Final = (
    _Refusal("name", lambda e: e.name != "vllm", "units follow vLLM's rules alone", ("vllm",)),
    _Refusal(
        "scheduler",
        lambda e: e.scheduler is not None,
        "attention ranks are batched by vLLM's own scheduler alone; remove it",
        roles=("attention",),
    ),
    *(
        _Refusal(
            f"{phase}_context_parallel_size",
            lambda e, phase=phase: getattr(e, f"{phase}_context_parallel_size") > 1,  # type: ignore[misc]
            "context parallelism is not modelled with attention and FFN apart",
            ("1",),
            ("attention",),
        )
        for phase in ("decode", "prefill")
    ),
    _Refusal(
        "speculative",
        lambda e: e.speculative is not None,
        "drafts are not modelled with attention and FFN apart",
    ),
    _Refusal(
        "pipeline_parallel_size",
        lambda e: e.pipeline_parallel_size > 1,
        "attention and FFN ranks are stages of their own; pipelines of layers are not modelled with them",
        ("1",),
    ),
    _Refusal(
        "step_time",
        lambda e: not e.step_time.knows_operators,
        "attention and FFN are priced operator by operator",
        ("learned", "roofline"),
    ),
    _Refusal(
        "cuda_graph.mode",
        lambda e: e.cuda_graph is not None and e.cuda_graph.mode == "piecewise",
        "FFN ranks have no attention to cut graphs at",
        ("none", "full"),
        ("ffn",),
    ),
    _Refusal(
        "moe.eplb.use_async",
        lambda e: e.moe is not None and e.moe.eplb is not None and e.moe.eplb.use_async is False,
        "experts that move between steps are not modelled here",
        ("true",),
        ("ffn",),
    ),
)


def engine_issues(role: str, engine: Engine, known: Known) -> list[Issue]:
    """Return the settings of an attention or FFN cluster's engine that are not modelled there."""
    issues = []
    for refusal in _REFUSALS:
        path = f"engine.{refusal.path}"
        if role in refusal.roles and known(path) and refusal.applies(engine):
            value: Any = engine
            for name in refusal.path.split("."):
                value = getattr(value, name)
            value = value.model_dump(mode="json", exclude_none=True) if isinstance(value, Section) else value
            issues.append(Issue(path, value, f"was {show_value(value)}: {refusal.message}", refusal.allowed))
    return issues


def unit_issues(
    name: str, attention: tuple[int, Engine, Resolved], ffn: tuple[int, Engine, Resolved]
) -> Iterator[Issue]:
    """Yield where an FFN cluster does not suit its attention cluster `name`: replicas, engines, facts."""
    if ffn[0] != attention[0]:
        message = (
            f"was {ffn[0]}, but cluster '{name}' has {attention[0]}: every attention replica has FFN ranks of"
            " its own"
        )
        yield Issue("cluster.replicas", ffn[0], message, (str(attention[0]),))
    if attention[1].version != ffn[1].version:
        message = f"was {ffn[1].version}, but cluster '{name}' has {attention[1].version}"
        yield Issue("engine.version", ffn[1].version, message, (attention[1].version,))
    one, other = attention[2].model, ffn[2].model
    for field, differ in (
        ("dtype", one.dtype != other.dtype),
        ("quantization", one.quantization != other.quantization),
    ):
        if differ:
            value = getattr(ffn[1], field)
            message = f"was {show_value(value)}, which gives other weights than in cluster '{name}'"
            yield Issue(f"engine.{field}", value, f"{message}; give both the same")
