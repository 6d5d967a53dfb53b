"""Run scenarios: from a `Scenario` to a `Result`, one at a time or many at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, overload

from frontier import _frontier
from frontier.config import Scenario, load
from frontier.errors import ConfigError, FrontierError, Issue
from frontier.lowering import Lowered, LoweredCluster, lower
from frontier.results import Objectives, Result, RunFacts
from frontier.results.cluster_facts import ClusterFacts

if TYPE_CHECKING:
    from frontier.config import Resolved
    from frontier.config.fields import Span
    from frontier.workloads import LoadedTrace

T = TypeVar("T")

ScenarioLike: TypeAlias = Scenario | Mapping[str, Any] | str | PathLike[str]
"""A scenario, its plain values, or the path of its YAML file."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run has come.

    Attributes:
        now_s: simulated time in seconds.
        ended: requests finished or rejected.
        total: requests in all, None if not known beforehand.
        events: events handled.
    """

    now_s: float
    ended: int
    total: int | None
    events: int


def simulate(
    scenario: ScenarioLike,
    *,
    progress: Callable[[Progress], object] | None = None,
    policy: Callable[[dict[str, Any]], float] | None = None,
) -> Result:
    """Simulate one scenario.

    Args:
        scenario: a `Scenario`, its plain values, or the path of its YAML file.
        progress: called about five times a second and at the end.
        policy: ranks requests, smaller first, in place of `engine.scheduling_policy`. It is called once per
            request, on its arrival, with a dict of `request`, `now_s`, `prompt_tokens`, `output_tokens`
            (the true length, which no real engine knows), `priority`, `session`, `replica` and that
            replica's `num_running`, `num_waiting` and `num_free_blocks`; the number that it returns stays.
            Only for a scenario of one cluster.
            Slower than any policy of the scenario, since each arrival takes the GIL; what changes as
            requests wait needs `engine.scheduling_policy.expression`.

    Raises:
        ConfigError: the scenario is not valid; all problems are listed.
        WorkloadError: its trace cannot be read.
        PackError: a pack of predictors cannot be read.
        SimulationError: the run could not end (`DeadlockError`, `LivelockError`), as the real engine's could
            not.

    Ctrl-C ends the run within a fraction of a second. Equal scenarios give equal results, bit for bit.
    """
    chosen = as_scenario(scenario)
    lowered = lower(chosen)
    report = None if progress is None else lambda facts: progress(Progress(**facts))
    plan_json = lowered.plan_json
    if policy is not None:
        _check_policy(chosen, policy)
        plan_json = lowered.with_callable_policy()
    raw = _frontier.simulate(plan_json, lowered.trace, lowered.predictors, report, policy)
    return Result(raw, run_facts(chosen, lowered))


def _check_policy(scenario: Scenario, policy: object) -> None:
    """Refuse a policy that cannot be called, or stands beside another.

    Raises:
        ConfigError: it is so.
    """
    if not callable(policy):
        raise ConfigError(Issue("policy", policy, f"was {type(policy).__name__}, must be a function"))
    views = scenario.views()
    if len(views) > 1:
        message = (
            f"was given for {len(views)} clusters, must be for one; set engine.scheduling_policy of each"
        )
        raise ConfigError(Issue("policy", policy, message))
    (view,) = views
    engine, order = view.engine.name, view.engine.scheduling_policy.chosen
    if engine == "sglang":
        message = "was given for engine sglang, whose orders are its own; set engine.sglang.schedule_policy"
        raise ConfigError(Issue("policy", policy, message))
    if order != "fcfs":
        message = f"was '{order}', but a policy was given to simulate, which decides; remove one of the two"
        raise ConfigError(view.placed(Issue("engine.scheduling_policy", order, message)))


@overload
def simulate_many(
    scenarios: Iterable[ScenarioLike],
    *,
    threads: int | None = ...,
    progress: Callable[[int, int], object] | None = ...,
    on_error: Literal["raise"] = ...,
    reduce: None = ...,
) -> list[Result]: ...


@overload
def simulate_many(
    scenarios: Iterable[ScenarioLike],
    *,
    threads: int | None = ...,
    progress: Callable[[int, int], object] | None = ...,
    on_error: Literal["raise"] = ...,
    reduce: Callable[[Result], T],
) -> list[T]: ...


@overload
def simulate_many(
    scenarios: Iterable[ScenarioLike],
    *,
    threads: int | None = ...,
    progress: Callable[[int, int], object] | None = ...,
    on_error: Literal["return"],
    reduce: Callable[[Result], T] | None = ...,
) -> list[T | Result | FrontierError]: ...


def simulate_many(
    scenarios: Iterable[ScenarioLike],
    *,
    threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
    on_error: Literal["raise", "return"] = "raise",
    reduce: Callable[[Result], Any] | None = None,
) -> list[Any]:
    """Simulate independent scenarios in parallel, without the GIL.

    Scenarios with the same trace settings share one copy of the trace.

    Args:
        scenarios: as for `simulate`, any number.
        threads: worker threads, by default as many as there are processors.
        progress: called with (number done, number in all) after each run.
        on_error: `raise` the first error that is met, or `return` errors in place of their results.
        reduce: what to keep of each result, such as `lambda result: result.summary().to_dict()`; called in
            the calling thread as runs end. A result with all its columns takes tens of megabytes per million
            tokens, so long sweeps want one.

    Returns:
        One result (or what `reduce` made of it) per scenario, in their order. Results do not depend on the
        number of threads.

    Raises:
        ConfigError: an argument is not valid.
        FrontierError: what `simulate` raises, if `on_error` is `raise`, with a note that names the scenario.
    """
    threads = _checked_threads(threads)
    if on_error not in ("raise", "return"):
        message = f"was {on_error!r}, says what to do with runs that fail"
        raise ConfigError(Issue("on_error", on_error, message, allowed=("raise", "return")))
    if isinstance(scenarios, (Scenario, Mapping, str)) or not isinstance(scenarios, Iterable):
        message = f"was {type(scenarios).__name__}, must be several scenarios, as in a list"
        raise ConfigError(Issue("scenarios", scenarios, message))
    outcomes: list[Any] = []
    ready: list[tuple[int, Scenario, Lowered]] = []

    def fail(index: int, error: FrontierError) -> None:
        if on_error == "raise":
            error.add_note(f"in scenarios[{index}]")
            raise error
        outcomes[index] = error

    for index, scenario in enumerate(scenarios):
        outcomes.append(None)
        try:
            chosen = as_scenario(scenario)
            ready.append((index, chosen, lower(chosen)))
        except FrontierError as error:
            fail(index, error)
    ended = len(outcomes) - len(ready)

    def finish(position: int, raw: Any) -> None:
        nonlocal ended
        index, chosen, lowered = ready[position]
        if isinstance(raw, FrontierError):
            fail(index, raw)
        elif isinstance(raw, BaseException):
            raise raw
        else:
            result = Result(raw, run_facts(chosen, lowered))
            outcomes[index] = result if reduce is None else reduce(result)
        ended += 1
        if progress is not None:
            progress(ended, len(outcomes))

    plans = [lowered for _, _, lowered in ready]
    _frontier.simulate_many(
        [plan.plan_json for plan in plans],
        _shared_traces(plans),
        [plan.predictors for plan in plans],
        threads,
        finish,
    )
    return outcomes


def simulate_with_residuals(
    scenario: ScenarioLike,
    replications: int,
    *,
    threads: int | None = None,
    reduce: Callable[[Result], T],
) -> tuple[Result, list[T]]:
    """Simulate a scenario once as it is, and `replications` times with errors of its predictors.

    Each replication draws one error per operator, for the whole run, from the hold-out residuals of its
    predictor; arrivals, lengths and prompts stay as they are. `Result.interval` is made of this.

    Args:
        scenario: as for `simulate`.
        replications: how many runs with errors, at least 1.
        threads: worker threads, by default as many as there are processors; they do not change results.
        reduce: what to keep of each of these runs.

    Returns:
        The result without errors, and what `reduce` made of the others, in order.

    Raises:
        ConfigError: an argument is not valid, or no operator of the scenario has a learned predictor.
        FrontierError: what `simulate` raises, with a note that names the replication.
    """
    threads = _checked_threads(threads)
    if isinstance(replications, bool) or not isinstance(replications, int) or replications < 1:
        message = f"was {replications!r}, must be a whole number of at least 1"
        raise ConfigError(Issue("replications", replications, message))
    chosen = as_scenario(scenario)
    lowered = lower(chosen)
    if not lowered.predictors:
        message = f"was {lowered.step_time}, has no predictors whose errors could be drawn"
        raise ConfigError(Issue("engine.step_time", lowered.step_time, message, ("learned",)))
    facts = run_facts(chosen, lowered)
    best: list[Result] = []
    kept: list[Any] = [None] * replications

    def finish(position: int, raw: Any) -> None:
        if isinstance(raw, BaseException):
            raw.add_note(f"in replication {position} of {replications}" if position else "without errors")
            raise raw
        result = Result(raw, facts)
        if position:
            kept[position - 1] = reduce(result)
        else:
            best.append(result)

    runs = replications + 1
    _frontier.simulate_many(
        [lowered.plan_json, *(lowered.with_residuals(number) for number in range(1, runs))],
        [lowered.trace] * runs,
        [lowered.predictors] * runs,
        threads,
        finish,
    )
    return best[0], kept


def _checked_threads(threads: int | None) -> int:
    if threads is None:
        return os.cpu_count() or 1
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ConfigError(Issue("threads", threads, f"was {threads!r}, must be a whole number of at least 1"))
    return threads


def as_scenario(scenario: ScenarioLike) -> Scenario:
    """Return the scenario that is meant: itself, its plain values, or the path of its YAML file.

    Raises:
        ConfigError: it is none of these, or not valid.
    """
    if isinstance(scenario, Scenario):
        return scenario
    if isinstance(scenario, Mapping):
        return Scenario.from_dict(dict(scenario))
    if isinstance(scenario, (str, PathLike)):
        return load(scenario)
    message = f"was {type(scenario).__name__}, must be a Scenario, its values, or the path of its YAML file"
    raise ConfigError(Issue("scenario", scenario, message))


def run_facts(scenario: Scenario, lowered: Lowered) -> RunFacts:
    """Return what metrics need to know of a scenario besides the columns of its run."""
    slo = scenario.objectives
    seconds = {
        f"{name}_s": None if getattr(slo, name) is None else getattr(slo, name) / 1e9
        for name in ("ttft", "tpot", "itl", "e2e")
    }
    window = slo.window
    report = None if lowered.columns is None else lowered.columns.report
    clusters = [_cluster_facts(cluster) for cluster in lowered.clusters]
    (first, *others) = clusters
    common: dict[str, Any] = {"clusters": tuple(clusters)} if others else first.to_dict()
    return RunFacts(
        gpus_total=sum(each.gpus for each in clusters),
        step_time=lowered.step_time,
        **{name: value for name, value in common.items() if name not in ("name", "gpus", "model")},
        objectives=Objectives(**seconds),
        warmup=_span(window.warmup),
        cooldown=_span(window.cooldown),
        scenario=scenario.to_dict(),
        warnings=lowered.warnings,
        notes=lowered.notes,
        trace_rows_read=None if report is None else report.rows_read,
        trace_rows_skipped=None if report is None else sum(report.rows_skipped.values()),
        versions={"frontier": _frontier.__version__},
        predictors=lowered.identities,
    )


def _cluster_facts(cluster: LoweredCluster) -> ClusterFacts:
    """Return the facts of a cluster's GPUs; with FFN ranks beside, of the mean of all its GPUs."""
    resolved, unit = cluster.resolved, cluster.view.unit
    pools = [resolved] if unit is None else [resolved, unit.facts]
    gpus = sum(pool.gpus_total for pool in pools)

    def mean(of: Callable[[Resolved], float | None]) -> float | None:
        values = [of(pool) for pool in pools]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            return None
        if len(set(known)) == 1:
            return known[0]
        return sum(value * pool.gpus_total for value, pool in zip(known, pools, strict=True)) / gpus

    return ClusterFacts(
        name=cluster.view.name,
        gpus=gpus,
        gpu_price_per_hour_usd=mean(lambda pool: pool.price_per_hour),
        peak_flops_per_s=mean(lambda pool: pool.peak_flops_per_s),
        memory_bandwidth_bytes_per_s=mean(lambda pool: pool.gpu.memory_bandwidth_bytes_per_s),
        idle_power_w=mean(lambda pool: None if pool.gpu.power is None else pool.gpu.power.idle_w),
        peak_power_w=mean(lambda pool: None if pool.gpu.power is None else pool.gpu.power.peak_w),
        max_model_len=resolved.max_model_len,
        model=cluster.view.served_model,
    )


def build_info() -> dict[str, Any]:
    """Return facts about this build: version, plan schema, and whether it is a slow debug build."""
    return {
        "version": _frontier.__version__,
        "plan_schema_version": _frontier.PLAN_SCHEMA_VERSION,
        "debug_build": _frontier.DEBUG_BUILD,
    }


def _span(span: Span) -> float | str:
    """Return a stretch of a run in seconds, or as a share such as `10%`."""
    return str(span) if span.duration_ns is None else span.duration_ns / 1e9


def _shared_traces(lowered: list[Lowered]) -> list[_frontier.Trace | None]:
    """Return the traces of the plans, one object for all that share their columns."""
    traces: dict[int, _frontier.Trace] = {}
    shared: list[_frontier.Trace | None] = []
    for plan in lowered:
        columns: LoadedTrace | None = plan.columns
        if columns is None:
            shared.append(None)
            continue
        # The columns outlive the loop (`lowered` holds them), so their ids stay distinct.
        if id(columns) not in traces:
            trace = plan.trace
            assert trace is not None
            traces[id(columns)] = trace
        shared.append(traces[id(columns)])
    return shared
