"""From `engine.moe` to the plan's `MoeSpec` (rust/frontier-core/src/plan/step_time/moe.rs)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from frontier.config.moe import (
    ASYNC_EPLB_SINCE,
    DEFAULT_DBO_DECODE_TOKENS,
    DEFAULT_DBO_PREFILL_TOKENS,
    DEFAULT_SHARED_EXPERTS_TOKENS,
)
from frontier.errors import ConfigError, Issue
from frontier.expert_counts import load_expert_counts
from frontier.models.sharding import pipeline_layers
from frontier.vllm_versions import minor_of

if TYPE_CHECKING:
    from frontier.config.moe import Eplb, Moe
    from frontier.models import Layout, ModelSpec

Planned = Sequence[Sequence[dict[str, Any]]]
"""Operators of the plan, one list per pipeline stage."""

_SHARED = ("shared_experts.", "shared_expert_gate")


def moe_plan(
    moe: Moe | None,
    stages: Planned,
    *,
    spec: ModelSpec,
    layout: Layout,
    version: str,
    seed: int,
    replication: int,
) -> dict[str, Any] | None:
    """Return the plan's routing, None without the section.

    Args:
        moe: the section.
        stages: the operators of the plan.
        spec: the model.
        layout: how it is spread over GPUs.
        version: of vLLM, which decides how experts are moved.
        seed: seed of the streams of popularity and loads.
        replication: replication of the same.

    Raises:
        ConfigError: a file of counts cannot be read, or does not suit the model.
    """
    if moe is None:
        return None
    located = [_stage(stage) for stage in stages]
    first, sizes = (
        0,
        pipeline_layers(spec.num_layers, layout.pipeline_parallel_size, layout.pipeline_layer_partition),
    )
    for found, stage, layers in zip(located, stages, sizes, strict=True):
        if found is not None:
            found |= {"first_layer": first, "layers": layers, "nodes": layout.expert_group.nodes}
            first += stage[found["experts"]]["count"]
    experts = next(stage[found["experts"]] for stage, found in zip(stages, located, strict=True) if found)
    plan = routing_plan(moe, experts, first, version=version, seed=seed, replication=replication)
    return {**plan, "stages": located}


def routing_plan(
    moe: Moe, experts: Mapping[str, Any], layers: int, *, version: str, seed: int, replication: int
) -> dict[str, Any]:
    """Return the plan's routing without `stages`, which say where experts are.

    Args:
        moe: the section.
        experts: `num_experts` and `top_k` of a layer.
        layers: with experts.
        version: as for `moe_plan`, as are seed and replication.
        seed: see there.
        replication: see there.

    Raises:
        ConfigError: a file of counts cannot be read, or does not suit the model.
    """
    routing = _routing(moe, experts, layers)
    shared = moe.shared_experts_stream_token_threshold
    return {
        "seed": seed,
        "replication": replication,
        "sampling": moe.sampling or "draw",
        "routing": routing,
        "drift": _drift(moe, routing),
        "placement": moe.expert_placement_strategy,
        "eplb": None if moe.eplb is None else _eplb(moe.eplb, version),
        "shared_overlap_max_tokens": DEFAULT_SHARED_EXPERTS_TOKENS if shared is None else shared,
        "dbo": {
            "decode_token_threshold": moe.dbo_decode_token_threshold or DEFAULT_DBO_DECODE_TOKENS,
            "prefill_token_threshold": moe.dbo_prefill_token_threshold or DEFAULT_DBO_PREFILL_TOKENS,
        }
        if moe.enable_dbo
        else None,
    }


def _stage(operators: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return where the layers with experts of a stage are, None where there are none."""
    experts = [at for at, operator in enumerate(operators) if operator["op"] == "fused_moe"]
    if not experts:
        return None
    if len(experts) > 1:
        message = "needs layers with experts of one kind, but the model has several in one stage"
        raise ConfigError(Issue("engine.moe", None, message))
    return {
        "experts": experts[0],
        "exchanges": [at for at, operator in enumerate(operators) if operator["op"] == "moe_exchange"],
        "shared": [at for at, operator in enumerate(operators) if operator["name"].startswith(_SHARED)],
    }


def _routing(moe: Moe, experts: Mapping[str, Any], layers: int) -> dict[str, Any]:
    routing = moe.routing
    if routing.trace is not None:
        windows = load_expert_counts(
            routing.trace.path,
            num_experts=experts["num_experts"],
            top_k=experts["top_k"],
            num_layers=layers,
        )
        return {"kind": "counts", "windows": windows}
    law = getattr(routing, routing.chosen)
    return {"kind": routing.chosen, **law.model_dump()}


def _drift(moe: Moe, routing: dict[str, Any]) -> dict[str, Any] | None:
    drift, windows = moe.drift, len(routing.get("windows", ()))
    if windows > 1 and drift is None:
        message = f"is missing: the counts have {windows} windows, so say how many steps one lasts"
        raise ConfigError(Issue("engine.moe.drift", None, message))
    if drift is None:
        return None
    if windows == 1:
        message = "has no effect: the counts have one window; remove it"
        raise ConfigError(Issue("engine.moe.drift", drift.model_dump(exclude_none=True), message))
    if windows > 1 and drift.shift is not None:
        message = f"was {drift.shift}, has no effect: the windows of the counts say what changes; remove it"
        raise ConfigError(Issue("engine.moe.drift.shift", drift.shift, message))
    experts = 0 if windows else drift.shift or 1
    return {"step_interval": drift.step_interval, "shift": experts}


def _eplb(eplb: Eplb, version: str) -> dict[str, Any]:
    by_default = minor_of(version) >= ASYNC_EPLB_SINCE
    return {
        "window_size": eplb.window_size,
        "step_interval": eplb.step_interval,
        "use_async": by_default if eplb.use_async is None else eplb.use_async,
    }
