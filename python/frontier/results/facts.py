"""What a result must know of its scenario to turn columns into metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from frontier.errors import ConfigError, Issue, nearest_name, show_value
from frontier.results.cluster_facts import WORDS, ClusterFacts

STEP_TIMES = ("roofline", "linear", "learned", "tables")
"""Ways of making step times; every printed or exported form of a result names the one it rests on."""


def joined_step_time(ways: Iterable[str]) -> str:
    """Return the label of step times that are made in these ways: the distinct ones, joined by "+"."""
    return "+".join(dict.fromkeys(ways))


@dataclass(frozen=True, slots=True)
class Objectives:
    """Latency objectives of one request, in seconds; None where there is none.

    A request meets an objective when its figure is at most the objective (`<=`, as in vLLM's benchmark).
    `itl_s` bounds the largest gap between two tokens of the request.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    itl_s: float | None = None
    e2e_s: float | None = None

    def __post_init__(self) -> None:
        issues = [
            Issue(
                f"objectives.{name}",
                value,
                f"was {show_value(value)}, must be a number of seconds above 0 or null",
            )
            for name, value in self.items()
            if value is not None and not _is_number(value, above=0.0)
        ]
        if issues:
            raise ConfigError(issues)

    def items(self) -> list[tuple[str, float | None]]:
        """Return (field name, seconds or None) for each objective, in the order of the fields."""
        return [(each.name, getattr(self, each.name)) for each in fields(self)]

    def any(self) -> bool:
        """Return whether there is an objective at all."""
        return any(value is not None for _, value in self.items())


@dataclass(frozen=True, slots=True)
class RunFacts:
    """Facts of a run that its columns do not carry.

    Attributes:
        gpus_total: GPUs of all replicas together.
        step_time: how step times were made, one of `STEP_TIMES`; where clusters differ, several, joined by
            "+" (`joined_step_time`).
        gpu_price_per_hour_usd: list price of one GPU for an hour, None if unknown (then no cost is given).
        peak_flops_per_s: dense peak of one GPU at the run's compute dtype, None if unknown (then no MFU).
        memory_bandwidth_bytes_per_s: HBM bandwidth of one GPU, None if unknown (then no MBU).
        idle_power_w: what one GPU draws without work, assumed or given; None if unknown (then no energy).
        peak_power_w: what it draws at full use, None if unknown (then no energy).
        max_model_len: longest prompt + output of the engine; a request that reaches it ends early.
        objectives: latency objectives of each request.
        warmup: what `Result.summary` leaves out at the start unless told otherwise: seconds, a duration
            such as "30s", or a share of the run such as "10%".
        cooldown: the same at the end.
        trace_rows_read: rows of the trace file that were read, None if the workload is no trace.
        trace_rows_skipped: those of them that were left out since no request could be made of them.
        scenario: the scenario as plain JSON values.
        warnings: what the reader of any figure of this run should know.
        notes: where step times are from and what stands in for what, for who wants to know.
        versions: name to version of the software that made the run ("frontier", ...).
        predictors: the learned predictors in use, as plain values: `id` and `sha256` of each.
        clusters: the GPUs of each cluster, in the order of the plan, where there are several. Then what is
            said here of one GPU (price, peaks, power) and of `max_model_len` is said there instead.
    """

    gpus_total: int
    step_time: str
    gpu_price_per_hour_usd: float | None = None
    peak_flops_per_s: float | None = None
    memory_bandwidth_bytes_per_s: float | None = None
    idle_power_w: float | None = None
    peak_power_w: float | None = None
    max_model_len: int | None = None
    objectives: Objectives = field(default_factory=Objectives)
    warmup: float | str = 0.0
    cooldown: float | str = 0.0
    trace_rows_read: int | None = None
    trace_rows_skipped: int | None = None
    scenario: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    predictors: tuple[Mapping[str, str], ...] = ()
    clusters: tuple[ClusterFacts, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "warnings", tuple(self.warnings))
        object.__setattr__(self, "notes", tuple(self.notes))
        object.__setattr__(self, "predictors", tuple(self.predictors))
        object.__setattr__(self, "clusters", tuple(self.clusters))
        issues = []
        if not isinstance(self.gpus_total, int) or isinstance(self.gpus_total, bool) or self.gpus_total < 1:
            message = f"was {show_value(self.gpus_total)}, must be a whole number of at least 1"
            issues.append(Issue("gpus_total", self.gpus_total, message))
        ways = self.step_time.split("+") if isinstance(self.step_time, str) else []
        if not ways or not set(ways) <= set(STEP_TIMES) or joined_step_time(ways) != self.step_time:
            message = f"was {show_value(self.step_time)}, names how step times were made"
            nearest = nearest_name(self.step_time, STEP_TIMES)
            issues.append(Issue("step_time", self.step_time, message, STEP_TIMES, nearest))
        price = self.gpu_price_per_hour_usd
        if price is not None and not (_is_number(price, above=0.0) or price == 0):
            message = f"was {show_value(price)}, must be a price of 0 or more, or null"
            issues.append(Issue("gpu_price_per_hour_usd", price, message))
        for name in ("peak_flops_per_s", "memory_bandwidth_bytes_per_s", "max_model_len"):
            value = getattr(self, name)
            if value is not None and not _is_number(value, above=0.0):
                issues.append(Issue(name, value, f"was {show_value(value)}, must be above 0 or null"))
        issues += [*self._trace_issues(), *self._power_issues(), *self._predictor_issues()]
        issues += self._cluster_issues()
        if issues:
            raise ConfigError(issues, source="run facts")

    @property
    def gpu_pools(self) -> tuple[ClusterFacts, ...]:
        """Return the GPUs by cluster; in a run of one cluster, one pool without a name of its own."""
        if self.clusters:
            return self.clusters
        return (ClusterFacts("all", self.gpus_total, **{name: getattr(self, name) for name in _BY_CLUSTER}),)

    @property
    def models(self) -> tuple[str, ...]:
        """Return the names of the models by number, none where all clusters serve one."""
        return tuple(dict.fromkeys(each.model for each in self.clusters if each.model is not None))

    @property
    def counts_operations(self) -> bool:
        """Return whether all step times are made of operations; a formula and tables know none."""
        return not {"linear", "tables"} & set(self.step_time.split("+"))

    def _cluster_issues(self) -> list[Issue]:
        if not self.clusters:
            return []
        issues = [
            Issue(name, value, f"was {show_value(value)}, but each of clusters has its own; must be null")
            for name in _BY_CLUSTER
            if (value := getattr(self, name)) is not None
        ]
        gpus = sum(cluster.gpus for cluster in self.clusters)
        if gpus != self.gpus_total:
            message = f"was {show_value(self.gpus_total)}, must be what clusters have together ({gpus})"
            issues.append(Issue("gpus_total", self.gpus_total, message))
        return issues

    def _trace_issues(self) -> list[Issue]:
        issues = []
        for name in ("trace_rows_read", "trace_rows_skipped"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
                message = f"was {show_value(value)}, must be a whole number of at least 0 or null"
                issues.append(Issue(name, value, message))
        read, skipped = self.trace_rows_read, self.trace_rows_skipped
        if not issues and skipped is not None and (read is None or skipped > read):
            message = f"was {skipped}, must be at most trace_rows_read ({show_value(read)})"
            issues.append(Issue("trace_rows_skipped", skipped, message))
        return issues

    def _power_issues(self) -> list[Issue]:
        issues = []
        for name in ("idle_power_w", "peak_power_w"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value, above=0.0) or value == 0):
                message = f"was {show_value(value)}, must be a power of 0 W or more, or null"
                issues.append(Issue(name, value, message))
        idle, peak = self.idle_power_w, self.peak_power_w
        if not issues and idle is not None and peak is not None and idle > peak:
            issues.append(
                Issue("idle_power_w", idle, f"was {idle:g}, must be at most peak_power_w ({peak:g})")
            )
        return issues

    def _predictor_issues(self) -> list[Issue]:
        form = "must be a mapping with the texts id and sha256"
        return [
            Issue(f"predictors.{index}", used, f"was {show_value(used)}, {form}")
            for index, used in enumerate(self.predictors)
            if not isinstance(used, Mapping)
            or set(used) != {"id", "sha256"}
            or not all(isinstance(text, str) for text in used.values())
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as plain values (`from_dict` reads them back)."""
        plain: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        plain["objectives"] = dict(self.objectives.items())
        plain["scenario"] = dict(self.scenario)
        plain["versions"] = dict(self.versions)
        plain["warnings"] = list(self.warnings)
        plain["notes"] = list(self.notes)
        plain["predictors"] = [dict(used) for used in self.predictors]
        plain["clusters"] = [cluster.to_dict() for cluster in self.clusters]
        return plain

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> RunFacts:
        """Read what `to_dict` wrote.

        Raises:
            ConfigError: a field is unknown, missing or out of range.
        """
        _check_names(plain, [each.name for each in fields(cls)], required=("gpus_total", "step_time"))
        objectives = plain.get("objectives", {})
        _check_names(objectives, [each.name for each in fields(Objectives)], prefix="objectives.")
        clusters = tuple(ClusterFacts.from_dict(each) for each in plain.get("clusters", ()))
        return cls(**{**plain, "objectives": Objectives(**objectives), "clusters": clusters})


_BY_CLUSTER = tuple(each.name for each in fields(ClusterFacts) if each.name not in WORDS)


def _check_names(
    plain: object, known: list[str], *, required: tuple[str, ...] = (), prefix: str = ""
) -> None:
    if not isinstance(plain, Mapping):
        message = f"was {show_value(plain)}, must be an object"
        raise ConfigError(Issue(prefix.rstrip("."), plain, message), source="run facts")
    issues = [
        Issue(
            prefix + str(name), plain[name], "is not a known field", tuple(known), nearest_name(name, known)
        )
        for name in plain
        if name not in known
    ]
    issues += [Issue(prefix + name, None, "is missing") for name in required if name not in plain]
    if issues:
        raise ConfigError(issues, source="run facts")


def _is_number(value: object, *, above: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and value > above
