"""How a summary is laid out: the same sections for the terminal and for HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from frontier.results import trust
from frontier.results.metrics import LATENCIES, METRICS, PERCENTILES

GROUP_TITLES = {
    "trace": "Trace",
    "requests": "Requests",
    "throughput": "Throughput",
    "objectives": "Objectives",
    "engine": "Engine",
    "clusters": "Clusters",
    "models": "Models",
    "transfers": "KV transfers",
    "speculative": "Speculative decoding",
    "cost": "Cost",
    "energy": "Energy (unmeasured: from idle and peak power)",
}
LATENCY_HEADER = (
    "Latency",
    "mean",
    "± 95 %",
    *("p50" if name == "median" else name for name in PERCENTILES),
    "max",
)

MODEL_LATENCY_HEADER = (
    "By model",
    "mean",
    *("p50" if name == "median" else name for name in PERCENTILES),
)
_MODEL_ROWS = (
    *("completed", "request_throughput", "output_throughput", "total_token_throughput"),
    *("request_goodput", "slo_attainment"),
)


@dataclass(frozen=True, slots=True)
class Section:
    """A titled list of (label, value) rows."""

    title: str
    rows: tuple[tuple[str, str], ...]


def title(summary: Mapping[str, Any]) -> str:
    """Return the head line, which always names how step times were made."""
    gpus = summary["gpus"]
    return (
        f"{summary['completed']:,} requests completed in {summary['duration']:,.6g} s on {gpus:,} "
        f"GPU{'s' if gpus != 1 else ''} (step time: {summary['step_time']})"
    )


def window_line(summary: Mapping[str, Any]) -> str:
    """Return the stretch of simulated time that was measured."""
    start, end = summary["window_start_s"], summary["window_end_s"]
    return f"measured from {start:,.6g} s to {end:,.6g} s of simulated time"


def trust_line(summary: Mapping[str, Any]) -> str:
    """Return what the step times rest on, '' where no operator was timed."""
    return trust.line(summary["gpu_time_by_provenance"])


def latency_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return one row per latency metric, in the columns of `LATENCY_HEADER`."""
    rows = []
    for key, label in LATENCIES.items():
        half_width = summary[f"mean_{key}_ci95_s"]
        cells = [f"mean_{key}_s", *(f"{name}_{key}_s" for name in PERCENTILES), f"max_{key}_s"]
        mean, *rest = (format_seconds(summary[name]) for name in cells)
        rows.append((label, mean, "-" if half_width is None else format_seconds(half_width), *rest))
    return rows


def model_latency_rows(summary: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return one row per latency metric and model, in the columns of `MODEL_LATENCY_HEADER`."""
    return [
        (
            f"{label}, {model}",
            *(format_seconds(figures[f"{name}_{key}_s"]) for name in ("mean", *PERCENTILES)),
        )
        for key, label in LATENCIES.items()
        for model, figures in (summary["by_model"] or {}).items()
    ]


def latency_tables(summary: Mapping[str, Any]) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """Return the tables of latencies, of all requests and of each model, as header and rows."""
    tables = [
        (LATENCY_HEADER, latency_rows(summary)),
        (MODEL_LATENCY_HEADER, model_latency_rows(summary)),
    ]
    return [(header, rows) for header, rows in tables if rows]


def sections(summary: Mapping[str, Any]) -> list[Section]:
    """Return the sections of plain metrics; those that are None are left out, and so are empty sections."""
    found = []
    for group, name in GROUP_TITLES.items():
        rows = []
        for metric in METRICS.values():
            value = summary[metric.name]
            if metric.group == group == "models":
                rows += _model_rows(value or {})
            elif metric.group == group and value is not None and not isinstance(value, Mapping):
                rows.append((metric.label, format_value(value, metric.unit)))
            elif metric.group == group == "clusters" and value is not None:
                rows += [
                    (f"{metric.label}, {key}", format_value(part, metric.unit)) for key, part in value.items()
                ]
            elif metric.group == group and isinstance(value, Mapping):
                rows += [(f"- {key}", format_value(part, metric.unit)) for key, part in value.items()]
        if rows:
            found.append(Section(name, tuple(rows)))
    return found


def _model_rows(by_model: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return what each model has beside latencies, metric by metric."""
    return [
        (f"{METRICS[name].label}, {model}", format_value(figures[name], METRICS[name].unit))
        for name in _MODEL_ROWS
        for model, figures in by_model.items()
        if figures[name] is not None
    ]


def attribution_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return a line for TTFT and one for E2EL: the causes by share, largest first."""
    lines = []
    for key in ("ttft", "e2el"):
        causes = summary[f"{key}_attribution_s"]
        total = sum(causes.values())
        if total > 0:
            ranked = sorted(causes.items(), key=lambda item: -item[1])
            parts = ", ".join(
                f"{cause} {value / total:.1%}" for cause, value in ranked if value / total >= 5e-4
            )
            lines.append(f"mean {LATENCIES[key]} goes to {parts}")
    return lines


def format_seconds(value: float | None) -> str:
    """Return a time with a fitting unit and four significant digits; below the clock's 1 ns it is 0."""
    if value is None:
        return "-"
    if abs(value) < 0.5e-9:
        return "0 s"
    for unit, factor in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        # Rounded first: 0.99999 s is 1.000 s, not 1000.0 ms.
        if abs(_rounded(value * factor)) >= 1.0 or unit == "µs":
            return f"{_digits(value * factor)} {unit}"
    raise AssertionError("the last unit always fits")


def format_value(value: float | int | str, unit: str) -> str:
    """Return a value with its unit: shares in per cent, money with a sign, counts grouped by thousands."""
    if isinstance(value, str):
        return value
    if unit == "s":
        return format_seconds(float(value))
    if unit == "share":
        return f"{value:.2%}"
    if unit == "USD":
        return f"${value:,.4g}" if value < 1000 else f"${value:,.0f}"
    number = f"{value:,}" if isinstance(value, int) else _digits(value)
    return number if unit in ("rows", "requests", "preemptions", "steps", "transfers") else f"{number} {unit}"


def _digits(value: float) -> str:
    magnitude = abs(_rounded(value))
    if magnitude >= 1000:
        return f"{value:,.0f}"
    if magnitude >= 100:
        return f"{value:.1f}"
    if magnitude >= 10:
        return f"{value:.2f}"
    return f"{value:.3f}" if magnitude >= 1 else f"{value:.4g}"


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
