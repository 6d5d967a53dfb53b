"""Compute the metrics of a window from the columns of a run (definitions: `docs/metrics.md`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frontier.results.attribution import KINDS, attribute
from frontier.results.by_cluster import by_cluster, kv_use
from frontier.results.by_model import by_model
from frontier.results.clusters import merged_trust
from frontier.results.columns import (
    FAILED,
    FINISHED,
    NEVER,
    REJECT_REASONS,
    REJECTED,
    UNFINISHED,
    Columns,
    client_stamps_ns,
    engine_arrival_ns,
)
from frontier.results.confidence import mean_half_width, p99_half_width
from frontier.results.facts import RunFacts
from frontier.results.gpu_use import cost, energy, utilisation
from frontier.results.metrics import ENGINE_TTFT, LATENCIES, OBJECTIVES, PERCENTILES
from frontier.results.rates import Seconds, mean_concurrent_requests, peak_concurrent_requests
from frontier.results.saturation import SATURATED, judge_saturation
from frontier.results.statistics import NS_PER_S, Sample, sample, share
from frontier.results.summary import Summary
from frontier.results.timeline import counters_between, peak_used_blocks
from frontier.results.tokens import TokenRuns
from frontier.results.transfers import transfer_metrics
from frontier.results.window import Window

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

FEW_REQUESTS = 100
"""Below this many requests a 99th percentile is little more than the maximum."""


def latencies_s(columns: Columns) -> dict[str, Floats]:
    """Return TTFT, TPOT and E2EL of each request in seconds; NaN where there is none.

    As clients see them: from sending a request to having its first and its last token. TTFT is known from the
    first token on; E2EL for finished requests; TPOT = (E2EL - TTFT) / (tokens - 1) for finished requests of
    more than one token. `engine_ttft` is from reaching the engine to the end of the step that made the token.
    """
    requests = columns.requests
    arrival, (first, finished) = requests["arrival_ns"], client_stamps_ns(requests)
    made = requests["first_token_ns"]
    tokens = requests["generated_tokens"].astype(np.int64)
    done = requests["status"] == FINISHED
    decoded = done & (tokens > 1)
    tpot = np.full(len(done), np.nan)
    tpot[decoded] = (finished - first)[decoded] / (tokens[decoded] - 1) / NS_PER_S
    return {
        "ttft": np.where(first == NEVER, np.nan, (first - arrival) / NS_PER_S),
        "tpot": tpot,
        "e2el": np.where(done, (finished - arrival) / NS_PER_S, np.nan),
        ENGINE_TTFT: np.where(
            (made == NEVER) | (requests["status"] == FAILED),
            np.nan,
            (made - engine_arrival_ns(requests)) / NS_PER_S,
        ),
    }


@dataclass(frozen=True, slots=True)
class _Selection:
    """Which requests a window is about, as masks over all requests.

    `arrived` in it; `measured`: arrived in it and finished at any time; `completed` in it, arrived at any
    time.
    """

    window: Window
    arrived: Mask
    measured: Mask
    completed: Mask

    @classmethod
    def of(cls, columns: Columns, window: Window) -> _Selection:
        requests = columns.requests
        finished = requests["status"] == FINISHED
        arrived = window.holds(requests["arrival_ns"])
        return cls(window, arrived, arrived & finished, finished & window.holds(requests["finished_ns"]))

    def among(self, requests: Mask) -> _Selection:
        """Return those of some requests."""
        return _Selection(
            self.window, self.arrived & requests, self.measured & requests, self.completed & requests
        )


def measure(columns: Columns, runs: TokenRuns, facts: RunFacts, window: Window) -> Summary:
    """Return the summary of `window`."""
    chosen = _Selection.of(columns, window)
    seconds = Seconds.of(columns, window)
    latencies = latencies_s(columns)
    values: dict[str, Any] = {
        "step_time": facts.step_time,
        "window_start_s": window.start_ns / NS_PER_S,
        "window_end_s": window.end_ns / NS_PER_S,
        "duration": window.duration_s,
        "gpus": facts.gpus_total,
        "trace_rows_read": facts.trace_rows_read,
        "trace_rows_skipped": facts.trace_rows_skipped,
        **_counts(columns, chosen, seconds),
        **_throughput(columns, runs, facts, chosen, seconds),
        **_latency(columns, runs, latencies, chosen.measured),
        **_objectives(runs, latencies, facts, chosen),
        "gpu_time_by_provenance": columns.trust.shares or None,
    }
    grown = _grown(columns, window)
    values |= _engine(columns, facts, chosen, grown)
    values |= by_cluster(columns, window, chosen.arrived, grown)
    values["by_model"] = by_model(
        columns,
        facts,
        lambda requests: _of_requests(
            columns, runs, latencies, facts, chosen=chosen.among(requests), requests=requests
        ),
    )
    values |= transfer_metrics(columns, window)
    values |= _drafts(columns, chosen.arrived)
    values |= cost(facts, values)
    values |= energy(columns, facts, values, grown)
    verdict = judge_saturation(columns, window)
    values |= {"saturation": verdict.verdict, "saturation_reason": verdict.reason}
    for kind in KINDS:
        split = attribute(columns, chosen.measured, kind, None, facts.step_time)
        values[f"{kind}_attribution_s"] = split.causes_s
    values["warnings"] = (*facts.warnings, *_trust_warnings(columns), *_warnings(values))
    return Summary(values)


def _counts(columns: Columns, chosen: _Selection, seconds: Seconds) -> dict[str, Any]:
    window, arrived = chosen.window, chosen.arrived
    requests = columns.requests
    repeated = requests["attempts"] > 1
    return {
        "arrived": int(arrived.sum()),
        "completed": int(chosen.completed.sum()),
        "measured_requests": int(chosen.measured.sum()),
        **_by_reason(columns, "rejected", arrived & (requests["status"] == REJECTED)),
        **_by_reason(columns, "failed", arrived & (requests["status"] == FAILED)),
        "repeated_requests": int((arrived & repeated).sum()) if repeated.any() else None,
        "unfinished": int((arrived & (requests["status"] == UNFINISHED)).sum()),
        "max_concurrent_requests": seconds.max_concurrent_requests(),
        "peak_concurrent_requests": peak_concurrent_requests(columns, window),
        "mean_concurrent_requests": mean_concurrent_requests(columns, window),
    }


def _by_reason(columns: Columns, name: str, ended: Mask) -> dict[str, Any]:
    """Return how many requests ended so, in all and by reason."""
    counts = np.bincount(columns.requests["reject_reason"][ended], minlength=len(REJECT_REASONS))
    reasons = zip(REJECT_REASONS[1:], counts[1:].tolist(), strict=True)
    return {
        name: int(ended.sum()),
        f"{name}_by_reason": {reason: count for reason, count in reasons if count},
    }


def _of_requests(
    columns: Columns,
    runs: TokenRuns,
    latencies: dict[str, Floats],
    facts: RunFacts,
    *,
    chosen: _Selection,
    requests: Mask,
) -> dict[str, Any]:
    """Return the metrics that some requests have on their own; `chosen` are already of them alone."""
    return {
        "arrived": int(chosen.arrived.sum()),
        "completed": int(chosen.completed.sum()),
        "measured_requests": int(chosen.measured.sum()),
        **_tokens(columns, runs.only(requests), chosen),
        **_latency(columns, runs, latencies, chosen.measured),
        **_objectives(runs, latencies, facts, chosen),
    }


def _tokens(columns: Columns, runs: TokenRuns, chosen: _Selection) -> dict[str, Any]:
    """Return tokens and rates: output tokens are those of `runs`, prompts those of completed requests."""
    window, completed = chosen.window, chosen.completed
    duration = window.duration_s
    before, after = runs.tokens_until(np.array([window.start_ns, window.stop_ns])).tolist()
    output = after - before
    prompts = int(columns.requests["prompt_tokens"][completed].sum(dtype=np.int64))
    return {
        "total_input_tokens": prompts,
        "total_output_tokens": output,
        "request_throughput": share(int(completed.sum()), duration),
        "output_throughput": share(output, duration),
        "total_token_throughput": share(prompts + output, duration),
    }


def _throughput(
    columns: Columns, runs: TokenRuns, facts: RunFacts, chosen: _Selection, seconds: Seconds
) -> dict[str, Any]:
    values = _tokens(columns, runs, chosen)
    busiest = seconds.max_output_tokens(runs) if chosen.window.duration_s else None
    values["max_output_tokens_per_s"] = busiest
    for name in ("request_throughput", "output_throughput", "total_token_throughput"):
        values[f"{name}_per_gpu"] = _per_gpu(values[name], facts)
    return values


def _per_gpu(value: float | None, facts: RunFacts) -> float | None:
    return None if value is None else value / facts.gpus_total


def _latency(
    columns: Columns, runs: TokenRuns, latencies: dict[str, Floats], measured: Mask
) -> dict[str, Any]:
    requests = columns.requests
    order = np.flatnonzero(measured)
    order = order[np.argsort(requests["arrival_ns"][order], kind="stable")]
    values: dict[str, Any] = {}
    for key in LATENCIES:
        if key == "itl":
            values |= _statistics(key, runs.gaps(measured), NS_PER_S)
            values["mean_itl_ci95_s"] = _itl_half_width(columns, order)
            continue
        series = latencies[key][order]
        series = series[~np.isnan(series)]
        values |= _statistics(key, sample(series))
        values[f"mean_{key}_ci95_s"] = mean_half_width(series)
        values[f"p99_{key}_ci95_s"] = p99_half_width(series)
    engine = latencies[ENGINE_TTFT][order]
    values |= _statistics(ENGINE_TTFT, sample(engine[~np.isnan(engine)]))
    return values


def _statistics(key: str, of: Sample, unit: float = 1.0) -> dict[str, float | None]:
    mean, std = of.moments()
    statistics = {"mean": mean, "std": std, "max": of.max()}
    statistics |= dict(zip(PERCENTILES, of.percentiles(list(PERCENTILES.values())), strict=True))
    return {f"{name}_{key}_s": None if value is None else value / unit for name, value in statistics.items()}


def _itl_half_width(columns: Columns, order: NDArray[np.intp]) -> float | None:
    """Return the half width for mean ITL: in each batch, the sum of all gaps over their number."""
    requests = columns.requests
    gaps = requests["generated_tokens"][order].astype(np.float64) - 1.0
    decoded = gaps > 0
    total = (requests["finished_ns"] - requests["first_token_ns"])[order][decoded] / NS_PER_S
    return mean_half_width(total, gaps[decoded])


def _objectives(
    runs: TokenRuns, latencies: dict[str, Floats], facts: RunFacts, chosen: _Selection
) -> dict[str, Any]:
    observed = dict(latencies)
    if facts.objectives.itl_s is not None:
        observed["itl"] = np.maximum(runs.max_gap_ns, 0) / NS_PER_S
    arrived = int(chosen.arrived.sum())
    met_all = np.ones(len(chosen.arrived), bool)
    values: dict[str, Any] = {}
    for key, field in OBJECTIVES.items():
        bound = getattr(facts.objectives, field)
        values[f"slo_attainment_{key}"] = None
        if bound is not None:
            # NaN: a request of one token has no TPOT, which counts as met, as in vLLM's benchmark.
            met = ~(observed[key] > bound)
            met_all &= met
            values[f"slo_attainment_{key}"] = share(int((chosen.measured & met).sum()), arrived)
    goodput = attainment = None
    if facts.objectives.any():
        goodput = share(int((chosen.completed & met_all).sum()), chosen.window.duration_s)
        attainment = share(int((chosen.measured & met_all).sum()), arrived)
    values["request_goodput"], values["request_goodput_per_gpu"] = goodput, _per_gpu(goodput, facts)
    values["slo_attainment"] = attainment
    return values


def _grown(columns: Columns, window: Window) -> dict[str, Floats] | None:
    """Return what the counters of the time line grew by on each engine, None where nothing is measured."""
    if window.end_ns == window.start_ns or not len(columns.timeline["time_ns"]):
        return None
    return counters_between(columns, window)


def _engine(
    columns: Columns, facts: RunFacts, chosen: _Selection, grown: dict[str, Floats] | None
) -> dict[str, Any]:
    window, arrived = chosen.window, chosen.arrived
    requests, totals = columns.requests, columns.totals
    preemptions = requests["preemptions"][arrived]
    admitted = arrived & (requests["scheduled_ns"] != NEVER)
    prompts = int(requests["prompt_tokens"][admitted].sum(dtype=np.int64))
    cached = int(requests["cached_tokens"][admitted].sum(dtype=np.int64))
    values: dict[str, Any] = {
        "prefix_hit_rate": share(cached, prompts),
        "preemptions": int(preemptions.sum(dtype=np.int64)),
        "preempted_requests": int((preemptions > 0).sum()),
        **dict.fromkeys(("mean_kv_use", "peak_kv_use", "gpu_busy_share", "mfu", "mbu")),
    }
    if grown is None:
        return values
    span_ns = float(window.end_ns - window.start_ns)
    used = grown["used_block_ns"].tolist()
    values["mean_kv_use"], values["peak_kv_use"] = kv_use(
        columns, window, used, peak_used_blocks(columns, window), slice(None)
    )
    values["gpu_busy_share"] = share(sum(grown["busy_ns"].tolist()), span_ns * totals["replicas"])
    values |= utilisation(facts, window.duration_s, grown)
    return values


def _drafts(columns: Columns, arrived: Mask) -> dict[str, Any]:
    """Return what became of drafts, None where there were none; by position, it is of the whole run."""
    requests, totals = columns.requests, columns.totals
    names = ("num_drafts", "draft_tokens", "accepted_tokens")
    steps, drafted, accepted = (int(requests[name][arrived].sum(dtype=np.int64)) for name in names)
    # Every step with drafts has a first one.
    all_steps = next(iter(totals["drafted_per_position"]), 0)
    shares = {str(at): hits / all_steps for at, hits in enumerate(totals["accepted_per_position"], 1)}
    drafts = (drafted, accepted, drafted - accepted) if steps else (None, None, None)
    return {
        **dict(zip(("draft_tokens", "accepted_tokens", "rejected_tokens"), drafts, strict=True)),
        "rejected_token_share": (drafted - accepted) / (steps + drafted) if steps else None,
        "acceptance_rate": accepted / drafted if drafted else None,
        "mean_acceptance_length": 1 + accepted / steps if steps else None,
        "acceptance_rate_per_position": shares or None,
        "draft_time_share": _draft_time_share(columns),
    }


def _draft_time_share(columns: Columns) -> float | None:
    """Return the share of the whole run's step time that went into drafting, None where none did."""
    draft_ns = columns.totals["draft_ns"]
    timeline = columns.timeline
    if not draft_ns:
        return None
    # Counters only grow, so the largest of a replica is that at the end.
    busy = np.zeros(columns.totals["replicas"], np.int64)
    np.maximum.at(busy, timeline["replica"], timeline["busy_ns"])
    return share(draft_ns, int(busy.sum()))


def _trust_warnings(columns: Columns) -> list[str]:
    """Return a warning if learned step times leave the measured ranges too often.

    A roofline is a bound that was asked for, and says so everywhere.
    """
    learned = [cluster for cluster in columns.clusters if cluster.step_time == "learned"]
    warning = merged_trust(learned).warning()
    return [] if warning is None else [warning]


def _warnings(values: dict[str, Any]) -> list[str]:
    warnings = []
    for name, words in (("rejected", "were rejected"), ("failed", "failed")):
        if values[name]:
            reasons = ", ".join(
                f"{reason}: {count:,}" for reason, count in values[f"{name}_by_reason"].items()
            )
            warnings.append(f"{values[name]:,} of {values['arrived']:,} requests {words} ({reasons})")
    if values["unfinished"]:
        warnings.append(
            f"{values['unfinished']:,} requests had not finished when the run ended; latencies leave them out"
        )
    if values["saturation"] == SATURATED:
        warnings.append(
            "the load exceeds what the cluster can serve: latencies grow with the length of the run"
        )
    if 0 < values["measured_requests"] < FEW_REQUESTS:
        warnings.append(f"percentiles rest on {values['measured_requests']} requests")
    return warnings
