"""How far a metric moves with the errors of operator times."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from frontier.errors import ConfigError, FrontierError, Issue, nearest_name, show_value
from frontier.results.metrics import ALIASES, LATENCIES, METRICS, STATISTICS
from frontier.results.trust import percent

if TYPE_CHECKING:
    from frontier.results.facts import RunFacts
    from frontier.results.result import Result

_NO_FIGURES = ("verdict", "attribution", "warnings", "trust", "clusters")
"""Groups of metrics that are words, or several figures at once; so is what has no unit."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Where a metric would lie, given what its operator times are known, or assumed, to get wrong.

    Each replication simulates the same requests again with one error per operator, drawn for the whole run:

    - of a predictor of this GPU, from its hold-out residuals (log measured / predicted);
    - of a predictor pooled over GPUs, from its residuals on GPUs that were left out one at a time;
    - of an operator with a bound alone, by assumption: a factor exp(u ln 3) with u uniform in (0, 1), that
      is, the bound is up to three times too short.

    One more replication would fall between `low` and `high` with probability `level`.

    It does not cover: arrivals and lengths (the same in every replication); drift between the engine version
    that was profiled and the one that is deployed; host time, scheduling, and whatever else the simulator
    may get wrong. Extrapolated time (`Result.trust`) is likely worse than its residuals say.

    Attributes:
        metric: name, as in a summary.
        estimate: the metric of the result itself, whose operators take their predicted times.
        low: lower end.
        high: upper end.
        level: probability that another replication lies between them.
        replications: number of runs with errors.
        values: the metric in each of them, in order.
        unmeasured_share: share of the result's GPU time that rests on no data of this GPU: pooled
            predictors, and bounds with the error assumed for them.
    """

    metric: str
    estimate: float
    low: float
    high: float
    level: float
    replications: int
    values: tuple[float, ...]
    unmeasured_share: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "values": list(self.values)}

    def __str__(self) -> str:
        from frontier.results.layout import format_value  # noqa: PLC0415 - only when printed

        unit = METRICS[self.metric].unit
        estimate, low, high = (format_value(value, unit) for value in (self.estimate, self.low, self.high))
        text = f"{self.metric}: {estimate}, {self.level:.0%} between {low} and {high}"
        text += f" ({self.replications} replications of operator errors"
        if self.unmeasured_share > 0:
            text += (
                f"; {percent(self.unmeasured_share)} of GPU time is unmeasured: pooled predictors by their"
                " leave-one-GPU-out residuals, bounds assumed up to three times too short"
            )
        return text + ")"


def metric_name(name: object) -> str:
    """Return the summary's name of a metric, from it or from another way to say it (`ttft_p99`).

    Raises:
        ConfigError: there is no such metric, or it is no figure.
    """
    found = _other_names().get(name, name) if isinstance(name, str) else ""
    if found not in METRICS:
        figures = [metric for metric in METRICS if _has_figure(metric)]
        nearest = nearest_name(name, [*figures, *_other_names()])
        message = f"was {show_value(name)}, must be a metric of the summary"
        raise ConfigError(Issue("metric", name, message, tuple(figures), nearest))
    if not _has_figure(found):
        message = f"was {show_value(name)}, which is no single figure"
        raise ConfigError(Issue("metric", name, message))
    return found


def _has_figure(name: str) -> bool:
    metric = METRICS[name]
    return metric.group not in _NO_FIGURES and bool(metric.unit)


def _other_names() -> dict[str, str]:
    """Return aliases: `ttft_p99`, `p99_ttft` and `p99_ttft_s` for one thing, `e2e` for `e2el`."""
    names = dict(ALIASES)
    keys = {**{key: key for key in LATENCIES}, "e2e": "e2el"}
    statistics = {**{name: name for name in STATISTICS}, "p50": "median"}
    for key, metric_key in keys.items():
        for name, statistic in statistics.items():
            target = f"{statistic}_{metric_key}_s"
            for form in (f"{key}_{name}", f"{key}_{name}_s", f"{name}_{key}", f"{name}_{key}_s"):
                if form not in METRICS:
                    names[form] = target
    return names


def least_replications(level: float) -> int:
    """Return how many replications an interval of this level needs: its ends are order statistics."""
    return math.ceil(2.0 / (1.0 - level) - 1.0 - 1e-9)


def interval(
    result: Result, metric: object, *, level: float, replications: int, threads: int | None
) -> Interval:
    """Return the interval of a metric; see `Result.interval`."""
    name = metric_name(metric)
    _check(result, level, replications)
    estimate = result.summary()[name]
    if not _is_figure(estimate):
        message = f"{name} of this result is {show_value(estimate)}: there is nothing to make an interval of"
        raise FrontierError(message)
    from frontier.simulation import simulate_with_residuals  # noqa: PLC0415 - which makes results

    again, values = simulate_with_residuals(
        result.scenario, replications, threads=threads, reduce=lambda run: run.summary()[name]
    )
    _same_run(result, again)
    missing = sum(not _is_figure(value) for value in values)
    if missing:
        raise FrontierError(f"{name} is not known in {missing} of {replications} replications")
    # Weibull positions: one more replication lies between the ends with probability `level`.
    tail = (1.0 - level) / 2.0
    low, high = np.quantile(np.array(values, np.float64), [tail, 1.0 - tail], method="weibull")
    return Interval(
        metric=name,
        estimate=float(estimate),
        low=float(low),
        high=float(high),
        level=level,
        replications=replications,
        values=tuple(float(value) for value in values),
        unmeasured_share=result.trust.shares.get("unmeasured", 0.0),
    )


def _is_figure(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _check(result: Result, level: object, replications: object) -> None:
    """Refuse what no interval can be made of.

    Raises:
        ConfigError: naming the argument and what is allowed.
    """
    if result.step_time != "learned":
        reason = {
            "tables": "tables of the user's own, whose errors nobody measured",
            "linear": "a formula in counts of the batch, whose errors nobody measured",
            "roofline": "a bound, whose errors nobody measured",
        }[result.step_time]
        message = f"was {result.step_time}, {reason}; an interval needs learned predictors"
        raise ConfigError(Issue("engine.step_time", result.step_time, message, ("learned",)))
    if isinstance(level, bool) or not isinstance(level, int | float) or not 0.0 < level < 1.0:
        message = f"was {show_value(level)}, must be a share between 0 and 1, such as 0.9"
        raise ConfigError(Issue("level", level, message))
    if isinstance(replications, bool) or not isinstance(replications, int):
        message = f"was {show_value(replications)}, must be a whole number"
        raise ConfigError(Issue("replications", replications, message))
    least = least_replications(float(level))
    if replications < least:
        message = f"was {replications}, must be at least {least} for a level of {level:g}"
        raise ConfigError(Issue("replications", replications, message))


def _same_run(result: Result, again: Result) -> None:
    """Refuse replications of another run than the one whose interval is asked for.

    Raises:
        FrontierError: the predictors, or anything else that the run depends on, have changed since.
    """
    changed = _changed_predictors(result.facts, again.facts)
    if changed:
        raise FrontierError(
            f"this result was made with other predictors than its scenario finds now ({changed}); give the"
            " packs that were used (engine.step_time.learned.packs), or run the scenario again"
        )
    if result.digest != again.digest:
        then, now = (facts.versions.get("frontier", "unknown") for facts in (result.facts, again.facts))
        raise FrontierError(
            f"running the scenario again gives digest {again.digest}, not {result.digest}: its trace, a"
            f" preset or frontier has changed since (frontier {then} then, {now} now); run the scenario again"
        )


def _changed_predictors(then: RunFacts, now: RunFacts) -> str:
    def hashes(facts: RunFacts) -> Mapping[tuple[str, str], None]:
        return dict.fromkeys((used["id"], used["sha256"]) for used in facts.predictors)

    before, after = hashes(then), hashes(now)
    gone = [identity for identity, sha256 in before if (identity, sha256) not in after]
    new = [identity for identity, sha256 in after if (identity, sha256) not in before]
    return ", ".join(dict.fromkeys([*gone, *new]))
