"""Problems between sections, and fields without effect: a field changes the simulation or is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from frontier.config.cuda_graph import cuda_graph_issues
from frontier.config.engine import Engine
from frontier.config.frontend import frontend_issues
from frontier.config.locate import is_path, why_no_file
from frontier.config.scheduler import keeps_prefixes
from frontier.config.sections import Cluster, Objectives
from frontier.config.sglang_checks import named_engine_issues
from frontier.config.workload import Workload
from frontier.errors import Issue, nearest_name, show_value

if TYPE_CHECKING:
    from frontier.models import ModelSpec

Known = Callable[..., bool]
"""Tells whether all the dotted paths named are usable."""


def engine_issues(engine: Engine, known: Known) -> list[Issue]:
    """Return the problems within the engine section that need neither model nor GPU."""
    issues = named_engine_issues(engine, known)
    if known("engine.cuda_graph", "engine.enforce_eager"):
        issues += cuda_graph_issues(engine)
    if known("engine.frontend"):
        issues += frontend_issues(engine)
    linear = engine.step_time.linear
    if not known("engine.step_time"):
        return issues
    if (
        not engine.step_time.knows_operators
        and engine.cpu_overhead is not None
        and known("engine.cpu_overhead")
    ):
        own = (
            "a linear step time, whose per_step covers"
            if linear is not None
            else "step times from tables, which cover"
        )
        message = f"has no effect with {own} the host; remove one of the two"
        issues.append(Issue("engine.cpu_overhead", engine.cpu_overhead.model_dump(), message))
    if not engine.step_time.knows_operators and engine.sampling is not None and known("engine.sampling"):
        message = "has no effect where the step time knows no operators; remove it"
        issues.append(Issue("engine.sampling", engine.sampling, message))
    if linear is not None and not any(getattr(linear, name) for name in type(linear).model_fields):
        message = "all constants are 0, so time would stand still; at least one must be over 0"
        issues.append(Issue("engine.step_time.linear", linear.model_dump(), message))
    return issues + _pack_issues(engine) + _table_issues(engine)


def _table_issues(engine: Engine) -> list[Issue]:
    """Return what is wrong with the place of tables; they are read when the scenario is lowered."""
    tables = engine.step_time.tables
    if tables is None:
        return []
    why = why_no_file(Path(tables.path).expanduser())
    if why is None:
        return []
    return [Issue("engine.step_time.tables.path", tables.path, f"was {show_value(tables.path)}, {why}")]


def _pack_issues(engine: Engine) -> list[Issue]:
    """Return what is wrong with the places of packs; they are opened when the scenario is lowered."""
    learned = engine.step_time.learned
    packs = (learned.packs if learned is not None else None) or ()
    issues = []
    for index, pack in enumerate(packs):
        is_second = pack in packs[:index]
        why = "is there twice; remove one of the two" if is_second else why_no_file(Path(pack).expanduser())
        if why is not None:
            at = f"engine.step_time.learned.packs.{index}"
            issues.append(Issue(at, pack, f"was {show_value(pack)}, {why}"))
    return issues


def kv_cache_manager_issues(engine: Engine, spec: ModelSpec, known: Known) -> list[Issue]:
    """Return what is wrong with the choice of the KV cache manager for a model's layers."""
    path = "engine.disable_hybrid_kv_cache_manager"
    if not known(path):
        return []
    given = engine.disable_hybrid_kv_cache_manager
    windows = [getattr(group.attention, "window", None) for group in spec.layers for _ in range(group.count)]
    sliding = sum(window is not None for window in windows)
    if sliding in (0, len(windows)):
        if given is None:
            return []
        message = f"has no effect on {spec.name}, whose layers are all of one kind; remove it"
        return [Issue(path, given, message)]
    spread = ("pipeline_parallel_size", "decode_context_parallel_size", "prefill_context_parallel_size")
    for field in spread:
        size = getattr(engine, field)
        if not given and size > 1 and known(f"engine.{field}"):
            message = (
                f"was not given: with {field} {size}, groups of layers with sliding windows are not modelled"
            )
            return [Issue(path, given, message, ("true",))]
    return []


def keeps_windows(engine: Engine, spec: ModelSpec) -> bool:
    """Return whether layers with sliding windows keep no more than the window (vLLM's hybrid manager).

    Schedulers in place of the engine's own keep whole contexts.
    """
    sliding = any(getattr(group.attention, "window", None) is not None for group in spec.layers)
    return sliding and not engine.disable_hybrid_kv_cache_manager and engine.scheduler is None


def cluster_issues(
    cluster: Cluster, engine: Engine | None, workload: Workload | None, known: Known
) -> list[Issue]:
    """Return the problems of routing with the engine's settings and the workload."""
    issues: list[Issue] = []
    router = cluster.router
    if not known("cluster.router"):
        return issues
    if router.max_imbalance is not None and router.policy != "prefix_aware":
        message = f"has no effect with policy {router.policy}, only with prefix_aware; remove it"
        issues.append(Issue("cluster.router.max_imbalance", router.max_imbalance, message))
    switch = "engine.enable_prefix_caching"
    if engine is not None and engine.name == "sglang":
        switch = "engine.sglang.disable_radix_cache"
    cached = engine is None or keeps_prefixes(engine) or not known(switch, "engine.scheduler")
    if router.policy == "prefix_aware" and not cached:
        need = f"needs {switch} to be {'false' if switch.endswith('radix_cache') else 'true'}"
        choice = engine.scheduler if engine is not None else None
        if choice is not None:
            own = f"engine.scheduler.{choice.chosen}"
            switched = choice.tensorrt_llm is not None
            need = f"needs {own}.enable_block_reuse to be true" if switched else f"cannot be with {own}"
        message = f"was 'prefix_aware', {need}: else no prefix is cached"
        issues.append(Issue("cluster.router.policy", router.policy, message))
    synthetic = workload.synthetic if workload is not None else None
    sessions_known = known("workload.synthetic.sessions", "workload.synthetic")
    if router.policy == "session_sticky" and synthetic and synthetic.sessions is None and sessions_known:
        message = "was 'session_sticky', needs workload.synthetic.sessions: the requests have no sessions"
        issues.append(Issue("cluster.router.policy", router.policy, message))
    return issues


def objective_issues(objectives: Objectives, known: Known) -> list[Issue]:
    """Return the problems of the metrics' window."""
    window = objectives.window
    shares = (window.warmup.share or 0.0) + (window.cooldown.share or 0.0)
    if shares >= 1 and known("objectives.window"):
        message = f"warmup and cooldown take {shares:.0%} of the run, must leave some of it"
        return [Issue("objectives.window", show_value(window.model_dump(mode="json")), message)]
    return []


def workload_issues(workload: Workload) -> list[Issue]:
    """Return what is wrong with the place of a trace; its rows are read when the scenario is lowered."""
    trace = workload.trace
    if trace is None:
        return []
    at, shown = "workload.trace.path", show_value(trace.path)
    if not is_path(trace.path):
        from frontier.workloads import builtin_traces  # noqa: PLC0415 - imports polars

        names = builtin_traces()
        if trace.path in names:
            return []
        message = f"was {shown}, not the name of a built-in trace; a file is written './{trace.path}'"
        return [Issue(at, trace.path, message, names, nearest_name(trace.path, names))]
    why = why_no_file(Path(trace.path))
    return [Issue(at, trace.path, f"was {shown}, {why}")] if why else []


def workload_warnings(workload: Workload, max_model_len: int) -> list[str]:
    """Return what is odd about synthetic lengths under the engine's longest context."""
    synthetic = workload.synthetic
    if synthetic is None:
        return []
    least = synthetic.prompt_tokens.bounds()[0] + synthetic.output_tokens.bounds()[0]
    if least > max_model_len:
        return [
            f"workload.synthetic: every request has at least {least} tokens of prompt and output, more than"
            f" max_model_len ({max_model_len}); all will be rejected"
        ]
    return []
