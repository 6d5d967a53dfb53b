"""Names, labels and units of all metrics of a summary, in the order in which they are shown.

`docs/metrics.md` defines each of them; a test keeps the two in step.
"""

from __future__ import annotations

from dataclasses import dataclass

LATENCIES = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "E2EL"}
"""Latency metrics: name in keys, and as printed."""
ENGINE_TTFT = "engine_ttft"
"""TTFT without what API servers and the network add, in keys."""
PERCENTILES = {"median": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0}
STATISTICS = ("mean", "std", *PERCENTILES, "max")
OBJECTIVES = {"ttft": "ttft_s", "tpot": "tpot_s", "itl": "itl_s", "e2el": "e2e_s"}
"""Latency metric to the field of `Objectives` that bounds it (scenarios say `objectives.e2e`)."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One entry of a summary.

    Attributes:
        name: key.
        label: as printed.
        unit: "s", "requests", "tokens/s", "share", "USD", ...; empty for words.
        group: section in which it is shown.
    """

    name: str
    label: str
    unit: str
    group: str


def _latency_metrics() -> list[Metric]:
    metrics = []
    for key, label in LATENCIES.items():
        metrics += [Metric(f"{stat}_{key}_s", f"{stat} {label}", "s", "latency") for stat in STATISTICS]
        metrics.append(Metric(f"mean_{key}_ci95_s", f"95 % half width of mean {label}", "s", "latency"))
        if key != "itl":
            metrics.append(Metric(f"p99_{key}_ci95_s", f"95 % half width of p99 {label}", "s", "latency"))
    metrics += [
        Metric(f"{stat}_{ENGINE_TTFT}_s", f"{stat} engine TTFT", "s", "latency") for stat in STATISTICS
    ]
    return metrics


_ALL = [
    Metric("step_time", "Step time", "", "run"),
    Metric("window_start_s", "Window start", "s", "run"),
    Metric("window_end_s", "Window end", "s", "run"),
    Metric("duration", "Duration", "s", "run"),
    Metric("gpus", "GPUs", "GPUs", "run"),
    Metric("gpu_time_by_provenance", "GPU time", "share", "trust"),
    Metric("trace_rows_read", "Rows read", "rows", "trace"),
    Metric("trace_rows_skipped", "Rows skipped", "rows", "trace"),
    Metric("arrived", "Arrived", "requests", "requests"),
    Metric("completed", "Completed", "requests", "requests"),
    Metric("measured_requests", "Measured (arrived, then finished)", "requests", "requests"),
    Metric("rejected", "Rejected", "requests", "requests"),
    Metric("rejected_by_reason", "Rejected by reason", "requests", "requests"),
    Metric("failed", "Failed", "requests", "requests"),
    Metric("failed_by_reason", "Failed by reason", "requests", "requests"),
    Metric("repeated_requests", "Started more than once", "requests", "requests"),
    Metric("unfinished", "Unfinished", "requests", "requests"),
    Metric("max_concurrent_requests", "Peak concurrent, within a second", "requests", "requests"),
    Metric("peak_concurrent_requests", "Peak concurrent, at one instant", "requests", "requests"),
    Metric("mean_concurrent_requests", "Mean concurrent", "requests", "requests"),
    Metric("total_input_tokens", "Input tokens", "tokens", "throughput"),
    Metric("total_output_tokens", "Output tokens", "tokens", "throughput"),
    Metric("request_throughput", "Requests", "requests/s", "throughput"),
    Metric("output_throughput", "Output tokens", "tokens/s", "throughput"),
    Metric("total_token_throughput", "Total tokens", "tokens/s", "throughput"),
    Metric("max_output_tokens_per_s", "Peak output tokens", "tokens/s", "throughput"),
    Metric("request_throughput_per_gpu", "Requests per GPU", "requests/s", "throughput"),
    Metric("output_throughput_per_gpu", "Output tokens per GPU", "tokens/s", "throughput"),
    Metric("total_token_throughput_per_gpu", "Total tokens per GPU", "tokens/s", "throughput"),
    *_latency_metrics(),
    Metric("request_goodput", "Goodput", "requests/s", "objectives"),
    Metric("request_goodput_per_gpu", "Goodput per GPU", "requests/s", "objectives"),
    Metric("slo_attainment", "SLO attainment, all objectives", "share", "objectives"),
    *(
        Metric(f"slo_attainment_{key}", f"SLO attainment, {label}", "share", "objectives")
        for key, label in LATENCIES.items()
    ),
    Metric("prefix_hit_rate", "Prefix hit rate", "share", "engine"),
    Metric("preemptions", "Preemptions", "preemptions", "engine"),
    Metric("preempted_requests", "Preempted requests", "requests", "engine"),
    Metric("mean_kv_use", "Mean KV use", "share", "engine"),
    Metric("peak_kv_use", "Peak KV use", "share", "engine"),
    Metric("gpu_busy_share", "GPU busy", "share", "engine"),
    Metric("mfu", "MFU", "share", "engine"),
    Metric("mbu", "MBU", "share", "engine"),
    *(
        Metric(f"{name}_by_cluster", label, unit, "clusters")
        for name, label, unit in (
            ("mean_kv_use", "Mean KV use", "share"),
            ("peak_kv_use", "Peak KV use", "share"),
            ("gpu_busy_share", "GPU busy", "share"),
            ("num_steps", "Steps", "steps"),
            ("prefix_hit_rate", "Prefix hit rate", "share"),
        )
    ),
    Metric("by_model", "By model", "", "models"),
    Metric("kv_transfers", "Transfers", "transfers", "transfers"),
    Metric("kv_transfer_gb", "KV moved", "GB", "transfers"),
    Metric("kv_transfer_gb_per_s", "Rate while any is in flight", "GB/s", "transfers"),
    *(
        Metric(f"{stat}_kv_transfer_{part}_s", f"{stat} {label}", "s", "transfers")
        for part, label in (("wait", "wait"), ("flight", "time in flight"))
        for stat in ("mean", "median", "p90", "p99")
    ),
    Metric("draft_tokens", "Draft tokens", "tokens", "speculative"),
    Metric("accepted_tokens", "Accepted", "tokens", "speculative"),
    Metric("rejected_tokens", "Rejected (computed in vain)", "tokens", "speculative"),
    Metric("rejected_token_share", "Computed in vain, of decoding with drafts", "share", "speculative"),
    Metric("acceptance_rate", "Acceptance rate", "share", "speculative"),
    Metric("mean_acceptance_length", "Mean acceptance length", "tokens", "speculative"),
    Metric("acceptance_rate_per_position", "Acceptance rate per position", "share", "speculative"),
    Metric("draft_time_share", "Step time spent drafting", "share", "speculative"),
    Metric("cost_per_hour_usd", "Cost per hour", "USD", "cost"),
    Metric("cost_per_million_output_tokens_usd", "Cost per million output tokens", "USD", "cost"),
    Metric("cost_per_million_total_tokens_usd", "Cost per million total tokens", "USD", "cost"),
    Metric("energy_j", "Energy", "J", "energy"),
    Metric("energy_per_output_token_j", "Energy per output token", "J", "energy"),
    Metric("energy_per_token_j", "Energy per token", "J", "energy"),
    Metric("mean_power_per_gpu_w", "Mean power per GPU", "W", "energy"),
    Metric("saturation", "Saturation", "", "verdict"),
    Metric("saturation_reason", "Reason", "", "verdict"),
    Metric("ttft_attribution_s", "Where mean TTFT goes", "s", "attribution"),
    Metric("e2el_attribution_s", "Where mean E2EL goes", "s", "attribution"),
    Metric("warnings", "Warnings", "", "warnings"),
]

METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}
"""Every metric by name, in order."""

ALIASES = {
    f"p50_{key}_s": f"median_{key}_s" for key in (*LATENCIES, "kv_transfer_wait", "kv_transfer_flight")
}
"""Other names under which a metric is found; they are not listed as keys."""
