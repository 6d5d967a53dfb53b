"""From a scenario to the plan that the simulator runs.

The plan is one JSON document without presets, units or defaults (its schema: `rust/frontier-core/src/plan`);
the columns of a trace go beside it. Equal scenarios lower to equal text, so the text identifies a run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from frontier.config import Resolved, Scenario
from frontier.config.arrivals import Arrivals
from frontier.config.engine import CpuOverhead, Engine
from frontier.config.lengths import Length
from frontier.config.models_served import model_names, model_shares
from frontier.config.parallel import data_parallel_plan
from frontier.config.policy import NEEDS_SESSIONS, lower_policy
from frontier.config.resolve_sglang import sglang_scheduler
from frontier.config.scheduler import lower_scheduler
from frontier.config.sections import DEFAULT_MAX_IMBALANCE, Router
from frontier.config.speculative import speculative_plan
from frontier.config.views import ClusterView
from frontier.config.workload import Synthetic, Workload
from frontier.disaggregated_lowering import PredictorPool, program_plan
from frontier.dynamics_lowering import service_plan
from frontier.encode_lowering import engine_of_tower, suit_encoders
from frontier.errors import ConfigError, Issue
from frontier.moe_lowering import moe_plan
from frontier.results.facts import joined_step_time
from frontier.step_tables import read_tables
from frontier.trace_columns import trace_columns
from frontier.vllm_versions import minor_of

if TYPE_CHECKING:
    from frontier import _frontier
    from frontier.predictors.attach import Attached
    from frontier.workloads import LoadedTrace

SCHEMA_VERSION: Final = 2
"""Version of the plan's schema that this module writes."""

LIVELOCK_STEPS: Final = 100_000
"""Steps of a replica without progress after which a run is given up as a livelock."""


@dataclass(frozen=True)
class LoweredCluster:
    """One cluster made ready to run.

    Attributes:
        view: the cluster: its role, its facts, a scenario of its own.
        attached: its operators with the learned predictors that they refer to (numbered as beside the plan),
            None where step times are the user's own.
        plan: its part of the plan.
    """

    view: ClusterView
    attached: Attached | None
    plan: dict[str, Any]

    @property
    def resolved(self) -> Resolved:
        """The facts that its sections imply."""
        return self.view.facts

    @property
    def step_time(self) -> str:
        """How step times are made: "learned" (some operator has a predictor) or as was asked."""
        if self.attached is None:
            return str(self.plan["step_time"]["kind"])
        return "learned" if self.attached.predictors else "roofline"


@dataclass(frozen=True)
class Lowered:
    """A scenario made ready to run.

    Attributes:
        plan: the plan as plain values.
        plan_json: the same as canonical JSON text: sorted keys, no spaces.
        columns: the rows of the trace, None for a synthetic workload.
        clusters: its clusters, in the order of the plan.
        warnings: what a reader of the results should know.
        predictors: the learned predictors that go beside the plan, by index; shared with other scenarios.
        identities: `id` and `sha256` of each of them.
        notes: how they were chosen.
    """

    plan: dict[str, Any]
    plan_json: str
    columns: LoadedTrace | None
    clusters: tuple[LoweredCluster, ...]
    warnings: tuple[str, ...]
    predictors: list[_frontier.Predictor]
    identities: tuple[dict[str, str], ...]
    notes: tuple[str, ...]

    @property
    def only(self) -> LoweredCluster:
        """The one cluster of a co-located scenario.

        Raises:
            ConfigError: there are several.
        """
        if len(self.clusters) > 1:
            names = tuple(cluster.view.name for cluster in self.clusters)
            message = f"was not given, and there are {len(names)} clusters"
            raise ConfigError(Issue("cluster", None, message, names))
        return self.clusters[0]

    @property
    def resolved(self) -> Resolved:
        """The facts that the only cluster implies."""
        return self.only.resolved

    @property
    def attached(self) -> Attached | None:
        """The operators of the only cluster."""
        return self.only.attached

    @property
    def step_time(self) -> str:
        """How step times are made, as `LoweredCluster.step_time`; clusters that differ are joined by "+"."""
        return joined_step_time(cluster.step_time for cluster in self.clusters)

    def with_callable_policy(self) -> str:
        """Return the plan's text for a run whose order a function of the caller's decides."""
        return self._with_cluster(scheduler={"policy": {"callable": {"preemptive": False}}})

    def with_residuals(self, replication: int) -> str:
        """Return the plan's text for a run whose operators' errors are drawn for this replication."""
        residuals = {"seed": self.plan["seed"], "replication": replication}
        return self._with_cluster(step_time={"residuals": residuals})

    def _with_cluster(self, **sections: dict[str, Any]) -> str:
        """Return the plan's text with some fields of a section of each cluster replaced."""
        clusters = [
            cluster | {name: _with_fields(cluster[name], fields) for name, fields in sections.items()}
            for cluster in self.plan["clusters"]
        ]
        return _canonical({**self.plan, "clusters": clusters})

    @cached_property
    def trace(self) -> _frontier.Trace | None:
        """The trace as the simulator takes it, None for a synthetic workload."""
        return None if self.columns is None else self.columns.to_trace()


def _with_fields(section: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """Return a section with fields replaced that it has: a linear step time has no residuals.

    Those of attention and FFN apart are on both sides.
    """
    if section.get("kind") == "afd":
        return section | {side: _with_fields(section[side], fields) for side in ("attention", "ffn")}
    return section | fields if fields.keys() <= section.keys() else section


def lower(scenario: Scenario) -> Lowered:
    """Lower a scenario; loads its trace, if it has one.

    Scenarios with the same trace settings share the loaded columns as long as any of them is in use.

    Raises:
        WorkloadError: the trace cannot be read or has no requests.
        PackError: a pack of predictors is damaged.
        ConfigError: the scenario does not suit the trace, or the packs that it names.
    """
    views = [view for view in scenario.views() if view.has_requests]
    pool = PredictorPool()
    clusters = tuple(_lowered_cluster(view, pool) for view in views)
    told = [
        [*cluster.resolved.warnings, *(() if cluster.attached is None else cluster.attached.warnings)]
        for cluster in clusters
    ]
    notes = [() if cluster.attached is None else cluster.attached.notes for cluster in clusters]
    columns = None
    models = model_names(views)
    if scenario.workload.trace is not None:
        columns = trace_columns(
            scenario.workload.trace,
            seed=scenario.seed,
            replication=scenario.replication,
            models=models,
        )
        told = [
            [*warnings, *_trace_warnings(view, columns)] for view, warnings in zip(views, told, strict=True)
        ]
        suit_encoders(scenario, [(each.view, each.plan) for each in clusters], columns)
    plan = {
        "schema_version": SCHEMA_VERSION,
        "seed": scenario.seed,
        "replication": scenario.replication,
        "clusters": [cluster.plan for cluster in clusters],
        "workload": _workload(scenario.workload) | model_shares(scenario.workload, models),
        "output": {
            "steps": scenario.output.steps,
            "timeline_interval_ns": scenario.output.timeline_interval,
            "decision_log": None,
        },
        "limits": {"max_steps": None, "refuse_oversized": True, "livelock_steps": LIVELOCK_STEPS},
    }
    service, told_of_service = service_plan(scenario, views)
    plan |= service
    common: list[str] = [*told_of_service]
    if program := program_plan(scenario, views):
        plan["paths"] = program.paths
        if program.network is not None:
            plan["network"] = program.network
            for each, placement in zip(clusters, program.placements, strict=True):
                each.plan["placement"] = placement
        common += program.warnings
    return Lowered(
        plan,
        _canonical(plan),
        columns,
        clusters,
        (*common, *_merged(views, told)),
        pool.predictors,
        tuple(pool.identities),
        tuple(_merged(views, notes)),
    )


def _lowered_cluster(view: ClusterView, pool: PredictorPool) -> LoweredCluster:
    """Return a cluster with its part of the plan.

    Raises:
        ConfigError: a pack that does not suit its GPU.
        PackError: a pack that cannot be read.
    """
    scenario, resolved = view.scenario, view.facts
    attached: Attached | None
    if view.unit is not None:
        from frontier.unit_lowering import unit_step_time  # noqa: PLC0415 - needed for units alone

        step_time, attached = unit_step_time(view, pool)
    else:
        try:
            attached, draft = _attached(engine_of_tower(view), resolved)
        except ConfigError as error:
            raise error.placed([view.placed(issue) for issue in error.issues], error.source) from None
        if attached is not None:
            attached, draft = pool.numbered(attached, draft)
        step_time = _step_time(scenario, resolved, attached, draft)
    plan = {
        "name": view.name,
        "replicas": scenario.cluster.replicas,
        "router": _router(scenario.cluster.router),
        "data_parallel": data_parallel_plan(
            scenario.engine, resolved.model, resolved.layout, lock_step=view.unit is not None
        ),
        "scheduler": _scheduler(
            scenario.engine,
            resolved,
            lower_policy(scenario.engine.scheduling_policy, scenario.objectives),
            speculative_plan(scenario.engine, seed=scenario.seed, replication=scenario.replication),
            view.role,
        ),
        "kv_tiers": resolved.kv_tiers,
        "step_time": step_time,
        "frontend": None if scenario.engine.frontend is None else scenario.engine.frontend.to_plan(),
    }
    if scenario.cluster.in_service is not None:
        plan["in_service"] = scenario.cluster.in_service
    return LoweredCluster(view, attached, plan)


def _merged(views: Sequence[ClusterView], texts: Sequence[Sequence[str]]) -> list[str]:
    """Return what is told of clusters; what only some have is told with their names."""
    said: dict[str, list[str]] = {}
    for view, lines in zip(views, texts, strict=True):
        for line in lines:
            names = said.setdefault(line, [])
            if view.name not in names:
                names.append(view.name)
    return [
        line if len(names) == len(views) else f"{', '.join(names)}: {line}" for line, names in said.items()
    ]


def _canonical(plan: dict[str, Any]) -> str:
    return json.dumps(plan, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _trace_warnings(view: ClusterView, columns: LoadedTrace) -> list[str]:
    """Return what is odd about a trace under a cluster's settings.

    Raises:
        ConfigError: the router needs what the trace does not have.
    """
    scenario = view.scenario
    policy = scenario.cluster.router.policy
    if policy == "session_sticky" and columns.session is None:
        message = "was 'session_sticky', but the trace has no sessions; name workload.trace.columns.session"
        raise ConfigError(view.placed(Issue("cluster.router.policy", policy, message)))
    order = scenario.engine.scheduling_policy.chosen
    if order in NEEDS_SESSIONS and columns.session is None:
        message = f"was '{order}', but the trace has no sessions; name workload.trace.columns.session"
        raise ConfigError(view.placed(Issue("engine.scheduling_policy", order, message)))
    warnings = []
    skipped = sum(columns.report.rows_skipped.values())
    if skipped:
        warnings.append(str(columns.report))
    if policy == "prefix_aware" and columns.segment_offsets is None:
        warnings.append("cluster.router: prefix_aware, but no prompts of the trace share content")
    return warnings


def _router(router: Router) -> dict[str, Any]:
    if router.policy != "prefix_aware":
        return {"policy": router.policy}
    given = router.max_imbalance
    return {"policy": router.policy, "max_imbalance": DEFAULT_MAX_IMBALANCE if given is None else given}


def _scheduler(
    engine: Engine, resolved: Resolved, policy: Any, speculative: dict[str, Any] | None, role: str
) -> dict[str, Any]:
    if engine.name == "sglang":
        return sglang_scheduler(engine, resolved, role)
    from frontier.memory import MemoryPlan  # noqa: PLC0415 - keeps `import frontier` light
    from frontier.memory.versions import rules_of  # noqa: PLC0415

    memory = resolved.memory
    assert isinstance(memory, MemoryPlan)
    if engine.scheduler is not None:
        return lower_scheduler(
            engine.scheduler,
            block_size=memory.tokens_per_block,
            num_blocks=resolved.num_blocks,
            max_model_len=resolved.max_model_len,
            policy=policy,
        )
    return {
        "kind": "vllm_v1",
        "minor_version": minor_of(engine.version),
        "block_size": memory.tokens_per_block,
        "num_blocks": resolved.num_blocks,
        "kv_group_windows": list(memory.kv_group_windows),
        "max_model_len": resolved.max_model_len,
        "max_num_batched_tokens": resolved.max_num_batched_tokens,
        "max_num_scheduled_tokens": resolved.max_num_scheduled_tokens,
        "max_num_seqs": resolved.max_num_seqs,
        "max_num_active_seqs": engine.max_num_active_seqs,
        "long_prefill_token_threshold": engine.long_prefill_token_threshold,
        "long_prefill_token_threshold_adaptive": bool(engine.long_prefill_token_threshold_adaptive),
        "enable_chunked_prefill": engine.enable_chunked_prefill,
        "enable_prefix_caching": engine.enable_prefix_caching,
        "policy": policy,
        "scheduler_reserve_full_isl": engine.scheduler_reserve_full_isl is not False,
        "watermark": engine.watermark or 0.0,
        "async_scheduling": engine.schedules_asynchronously,
        "pipeline_parallel_size": engine.pipeline_parallel_size,
        "v2_runner": rules_of(engine.version).uses_second_runner(
            dense=not resolved.model.is_moe,
            method=None if engine.speculative is None else engine.speculative.method,
        ),
        "speculative": speculative,
    }


def _attached(engine: Engine, resolved: Resolved) -> tuple[Attached | None, dict[str, Any] | None]:
    """Return the operators with their predictors, None where no operator is looked at, and what drafts."""
    if not engine.step_time.knows_operators:
        return None, None
    from frontier.predictors.attach import attach  # noqa: PLC0415 - keeps `import frontier` light

    program = resolved.draft
    if program is None:
        return attach(resolved.stages, resolved.gpu, engine), None
    attached = attach((*resolved.stages, *program.lists), resolved.gpu, engine)
    count = len(resolved.stages)
    stages, lists = attached.stages[:count], attached.stages[count:]
    takes_time = any(lists) or any(program.host.to_plan().values())
    return replace(attached, stages=stages), program.to_plan(lists) if takes_time else None


def _step_time(
    scenario: Scenario, resolved: Resolved, attached: Attached | None, draft: dict[str, Any] | None
) -> dict[str, Any]:
    engine = scenario.engine
    linear = engine.step_time.linear
    if engine.step_time.tables is not None:
        return read_tables(engine.step_time.tables.path)
    if linear is not None or attached is None:
        assert linear is not None
        constants = {f"{name}_ns": getattr(linear, name) for name in type(linear).model_fields}
        return {"kind": "linear", **constants}
    overhead = engine.cpu_overhead or CpuOverhead()
    return {
        "kind": "operators",
        "gpu": resolved.gpu.to_plan(),
        "links": resolved.gpu.links(resolved.layout.gpus, resolved.layout.nodes).to_plan(),
        "cpu": {
            "per_step_s": overhead.per_step / 1e9,
            "per_seq_s": overhead.per_seq / 1e9,
            "overlapped": engine.hides_host_time,
        },
        "launches": _launches(overhead, resolved, attached, draft),
        "layout": resolved.layout.to_plan(),
        "stages": attached.stages,
        "draft": draft,
        "residuals": None,
        "moe": moe_plan(
            engine.moe,
            attached.stages,
            spec=resolved.model,
            layout=resolved.layout,
            version=engine.version,
            seed=scenario.seed,
            replication=scenario.replication,
        ),
    }


def _launches(
    overhead: CpuOverhead, resolved: Resolved, attached: Attached, draft: dict[str, Any] | None
) -> dict[str, Any]:
    from frontier.models.launches import stage_launches  # noqa: PLC0415 - keeps `import frontier` light

    return {
        "per_kernel_s": overhead.per_kernel_launch / 1e9,
        "per_graph_s": overhead.per_graph_launch / 1e9,
        "per_graph_kernel_s": overhead.per_graph_kernel / 1e9,
        "graphs": resolved.graphs.to_plan(),
        "stages": [stage_launches(stage) for stage in attached.stages],
        "draft": None
        if draft is None
        else {name: stage_launches(draft[name]) for name in ("first_pass", "decode_pass")},
    }


def _workload(workload: Workload) -> dict[str, Any]:
    trace = workload.trace
    if trace is not None:
        arrivals = _arrivals(trace.arrivals) if trace.arrivals is not None else None
        return {"kind": "trace", "arrivals": arrivals, "num_requests": trace.num_requests}
    assert workload.synthetic is not None
    return _synthetic(workload.synthetic)


def _synthetic(synthetic: Synthetic) -> dict[str, Any]:
    prefix = synthetic.shared_prefix
    shared = None
    if prefix is not None:
        shared = {
            "count": prefix.count,
            "tokens": _length(prefix.tokens),
            "zipf_exponent": prefix.zipf_exponent,
            "share": prefix.share,
        }
    return {
        "kind": "synthetic",
        "arrivals": _arrivals(synthetic.arrivals),
        "num_requests": synthetic.num_requests,
        "duration_ns": synthetic.duration,
        "prompt_tokens": _length(synthetic.prompt_tokens),
        "output_tokens": _length(synthetic.output_tokens),
        "shared_prefix": shared,
        **_encoder(synthetic),
        "sessions": synthetic.sessions,
        "max_priority": synthetic.max_priority,
    }


def _encoder(synthetic: Synthetic) -> dict[str, Any]:
    encoder = synthetic.encoder
    return {} if encoder is None else {"encoder": {"tokens": _length(encoder.tokens), "share": encoder.share}}


def _arrivals(arrivals: Arrivals) -> dict[str, Any]:
    if arrivals.poisson is not None:
        return {"kind": "poisson", "rate_per_s": arrivals.poisson.rate}
    if arrivals.gamma is not None:
        return {"kind": "gamma", "rate_per_s": arrivals.gamma.rate, "cv": arrivals.gamma.cv}
    if arrivals.constant is not None:
        return {"kind": "constant", "rate_per_s": arrivals.constant.rate}
    if arrivals.piecewise is not None:
        segments = [{"duration_ns": s.duration, "rate_per_s": s.rate} for s in arrivals.piecewise.segments]
        return {"kind": "piecewise", "segments": segments, "repeat": arrivals.piecewise.repeat}
    if arrivals.closed_loop is not None:
        loop = arrivals.closed_loop
        return {"kind": "closed_loop", "concurrency": loop.concurrency, "think_time_ns": loop.think_time}
    return {"kind": "burst"}


def _length(length: Length) -> dict[str, Any]:
    if length.fixed is not None:
        return {"kind": "fixed", "tokens": length.fixed}
    if length.range_ratio is not None:
        least, most = length.range_ratio.bounds()
        return {"kind": "uniform", "min": least, "max": most}
    if length.histogram is not None:
        return {
            "kind": "histogram",
            "edges": list(length.histogram.edges),
            "weights": list(length.histogram.weights),
        }
    chosen = length.chosen  # the other laws have the plan's own fields
    law = getattr(length, chosen)
    return {"kind": chosen, **{name: getattr(law, name) for name in type(law).model_fields}}
