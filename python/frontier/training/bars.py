"""What accuracy is asked of families of operators, whether it is met, and why not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from frontier.predictors.select import GENERIC


class Bar(NamedTuple):
    """What is asked of a family: shares, not percentages; None where nothing is asked."""

    name: str
    operators: tuple[str, ...]
    median: float
    p95: float
    within: tuple[str, float] | None


BARS = (
    Bar("attention", ("prefill_attention", "decode_attention"), 0.035, 0.142, ("within_10", 0.94)),
    Bar("linear", ("gemm",), 0.033, 0.064, None),
    Bar("grouped GEMM", ("fused_moe",), 0.014, 0.053, ("within_6", 0.95)),
)


def bar_of(operator: str) -> Bar | None:
    """Return the bar of an operator, None where there is none."""
    return next((bar for bar in BARS if operator in bar.operators), None)


def verdict(bar: Bar, found: Mapping[str, Any]) -> str:
    """Return "met", or what is missed."""
    missed = []
    if found["median"] > bar.median:
        missed.append(f"p50 {percent(found['median'])} > {percent(bar.median)}")
    if found["p95"] > bar.p95:
        missed.append(f"p95 {percent(found['p95'])} > {percent(bar.p95)}")
    if bar.within is not None and found[bar.within[0]] <= bar.within[1]:
        share = bar.within[0].removeprefix("within_")
        missed.append(f"{percent(found[bar.within[0]])} within {share} %, asked > {percent(bar.within[1])}")
    return "; ".join(missed) or "met"


def reason(bar: Bar, found: Mapping[str, Any]) -> str:
    """Return why a bar is missed as far as the data say, empty where it is met."""
    if verdict(bar, found) == "met":
        return ""
    if found["backend"] == GENERIC:
        return "as other generations predict it"
    floor = found.get("repeats")
    told = []
    if floor is not None:
        told += [
            f"{short} {percent(floor[name])}"
            for name, short, most in (("median", "p50", bar.median), ("p95", "p95", bar.p95))
            if found[name] > most and floor[name] > most
        ]
        if bar.within is not None:
            name, least = bar.within
            if found[name] <= least and floor[name] <= least:
                told.append(f"{percent(floor[name])} within {name.removeprefix('within_')} %")
    if told:
        return f"repeats themselves: {', '.join(told)}"
    return "ceiling of 300 trees: see profiles/README.md"


def percent(share: float) -> str:
    """Return a share as percent with one digit."""
    return f"{100 * share:.1f}"
