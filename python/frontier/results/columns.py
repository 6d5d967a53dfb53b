"""The columns that a simulation hands back: their names and types, checked once and made read-only.

One dict of numpy columns per table. Times are int64 nanoseconds since the start of the run, -1 where the
event never happened.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from frontier.errors import InvariantError
from frontier.results.clusters import ClusterColumns, clusters_from_raw, merged_kv_tiers, merged_trust
from frontier.results.facts import joined_step_time
from frontier.results.kv_tiers import KvTier
from frontier.results.trust import Trust

Column = NDArray[Any]
Ints = NDArray[np.int64]
Table = Mapping[str, Column]

NEVER = -1
"""Time stamp of what did not happen."""
NONE_U32 = 4_294_967_295
"""`replica` of a request that was never routed, `session` of a request without one."""

STATUSES = ("finished", "rejected", "unfinished", "failed")
FINISHED, REJECTED, UNFINISHED, FAILED = range(4)
GRAPH_MODES = ("eager", "piecewise", "full")
"""How the kernels of a step are launched, as `steps.graph` counts them."""
FIRST_FAILURE = 5
"""Reasons from here on are of requests that had been let in."""
REJECT_REASONS = (
    "none",
    "exceeds_max_model_len",
    "exceeds_kv_cache",
    "exceeds_token_budget",
    "queue_full",
    "timed_out",
    "replica_lost",
    "no_replica",
)

ATTRIBUTION_CAUSES = (
    "ingress",
    "queue",
    "prefill",
    "chunk_wait",
    "decode",
    "decode_mixed",
    "decode_wait",
    "preemption_wait",
    "preemption_redo",
    "cpu",
    "delivery",
    "kv_load",
    "kv_transfer_wait",
    "kv_transfer",
    "lost",
    "encode",
)
"""Where the time of a request goes; `docs/metrics.md` defines each."""

TRANSFER_CAUSES = ("kv_transfer_wait", "kv_transfer")
"""Those of them that only a run of several clusters knows."""

_I64, _I32, _U64, _U32, _U16, _U8, _F64 = (
    np.dtype(name) for name in ("i8", "i4", "u8", "u4", "u2", "u1", "f8")
)

REQUEST_COLUMNS: dict[str, np.dtype[Any]] = {
    "replica": _U32,
    "arrival_ns": _I64,
    "scheduled_ns": _I64,
    "first_token_ns": _I64,
    "finished_ns": _I64,
    "prompt_tokens": _U32,
    "output_tokens": _U32,
    "generated_tokens": _U32,
    "cached_tokens": _U32,
    "preemptions": _U32,
    "attempts": _U32,
    "num_drafts": _U32,
    "draft_tokens": _U32,
    "accepted_tokens": _U32,
    "priority": _I32,
    "session": _U32,
    "model": _U16,
    "encoder_tokens": _U32,
    "status": _U8,
    "reject_reason": _U8,
    **{f"{kind}_{cause}_ns": _I64 for kind in ("ttft", "e2e") for cause in ATTRIBUTION_CAUSES},
}
STEP_COLUMNS: dict[str, np.dtype[Any]] = {"end_ns": _I64}
WIDE_STEP_COLUMNS: dict[str, np.dtype[Any]] = {
    "start_ns": _I64,
    "end_ns": _I64,
    "prefill_tokens": _U32,
    "decode_tokens": _U32,
    "num_seqs": _U32,
    "kv_tokens": _U64,
    "num_running": _U32,
    "num_waiting": _U32,
    "free_blocks": _U32,
    "padded_tokens": _U32,
    "graph": _U8,
}
TOKEN_RUN_COLUMNS: dict[str, np.dtype[Any]] = {
    "request": _U32,
    "first_step": _U32,
    "last_step": _U32,
    "tokens_per_step": _U32,
}
TRANSFER_COLUMNS: dict[str, np.dtype[Any]] = {
    "request": _U32,
    "source": _U32,
    "destination": _U32,
    "ready_ns": _I64,
    "start_ns": _I64,
    "end_ns": _I64,
    "bytes": _U64,
}
"""Hand-overs of KV: `source` and `destination` are engines."""
TIMELINE_GAUGES = ("num_running", "num_waiting", "used_blocks", "peak_used_blocks")
TIMELINE_COUNTERS = (
    "prompt_tokens",
    "output_tokens",
    "finished",
    "preemptions",
    "busy_ns",
    "used_block_ns",
    "flops",
    "bytes",
    "active_s",
)
TIMELINE_FLOATS = ("used_block_ns", "flops", "bytes", "active_s")
TIMELINE_COLUMNS = ("time_ns", "replica", *TIMELINE_GAUGES, *TIMELINE_COUNTERS)
TOTALS = {
    "digest": str,
    "end_ns": int,
    "num_events": int,
    "num_steps": int,
    "num_empty_steps": int,
    "num_dummy_steps": int,
    "draft_ns": int,
    "replicas": int,
    "prefix_lookup_tokens": int,
    "prefix_hit_tokens": int,
    "drafted_per_position": tuple,
    "accepted_per_position": tuple,
}


@dataclass(frozen=True, slots=True)
class Columns:
    """All tables of a run.

    `replica` numbers engines through all clusters: where replicas have data parallel ranks, rank r of
    replica n of a cluster is its engine n * size + r, and `totals` has all of them as `replicas`.

    `steps` holds `end_ns` always and the rest of `WIDE_STEP_COLUMNS` when steps were recorded;
    `replica_offsets` (replicas + 1) says which of its rows belong to which replica.
    """

    requests: Table
    steps: Table
    replica_offsets: Ints
    token_runs: Table
    timeline: Table
    transfers: Table
    totals: Mapping[str, Any]
    clusters: tuple[ClusterColumns, ...]
    decision_log: str | None

    @property
    def cluster_of_engine(self) -> Ints:
        """Return the number of the cluster of each engine."""
        return self._per_engine(lambda number, _: number)

    @property
    def usable_blocks_of_engine(self) -> Ints:
        """Return how many KV blocks requests can hold on each engine."""
        return self._per_engine(lambda _, cluster: cluster.usable_blocks)

    @property
    def place_of_engine(self) -> tuple[Ints, Ints]:
        """Return the replica of each engine, counted within its cluster, and its data parallel rank there."""
        within = np.arange(self.totals["replicas"]) - self._per_engine(lambda _, each: each.engines.start)
        ranks = self._per_engine(lambda _, cluster: cluster.data_parallel_size)
        return within // ranks, within % ranks

    def _per_engine(self, value: Callable[[int, ClusterColumns], int]) -> Ints:
        """Return an array with one entry per engine, made of a number of its cluster."""
        values = [value(number, cluster) for number, cluster in enumerate(self.clusters)]
        return np.repeat(np.array(values, np.int64), [len(cluster.engines) for cluster in self.clusters])

    @property
    def step_time(self) -> str:
        """Return how step times were made; distinct ways of several clusters are joined by "+"."""
        return joined_step_time(cluster.step_time for cluster in self.clusters)

    @property
    def trust(self) -> Trust:
        """Return what the step times of all clusters rest on."""
        return merged_trust(self.clusters)

    @property
    def kv_tiers(self) -> tuple[KvTier, ...]:
        """Return what the tiers of KV of all clusters did."""
        return merged_kv_tiers(self.clusters)

    @property
    def causes(self) -> tuple[str, ...]:
        """Return the causes that latency may have: those of hand-overs only with several clusters."""
        several = len(self.clusters) > 1
        hidden = set() if several else set(TRANSFER_CAUSES)
        if not (self.requests["attempts"] > 1).any() and not (self.requests["status"] == FAILED).any():
            hidden.add("lost")
        if not self.requests["encoder_tokens"].any():
            hidden.add("encode")
        return tuple(cause for cause in ATTRIBUTION_CAUSES if cause not in hidden)

    @property
    def steps_recorded(self) -> bool:
        """Return whether `steps` has the wide columns."""
        return "start_ns" in self.steps

    @classmethod
    def from_raw(cls, raw: Mapping[str, Any]) -> Columns:
        """Take the dict that `frontier._frontier.simulate` returns.

        Raises:
            InvariantError: a table or column is missing, unknown, of another type or length.
        """
        totals = _totals(_get(raw, "totals", "the raw result"))
        steps = dict(_get(raw, "steps", "the raw result"))
        offsets = np.asarray(_get(steps, "replica_offsets", "steps"))
        steps.pop("replica_offsets")
        wide = set(steps) - set(STEP_COLUMNS)
        step_table = _typed("steps", steps, WIDE_STEP_COLUMNS if wide else STEP_COLUMNS)
        return cls(
            requests=_typed("requests", _get(raw, "requests", "the raw result"), REQUEST_COLUMNS),
            steps=step_table,
            replica_offsets=_offsets(offsets, totals["replicas"], len(step_table["end_ns"])),
            token_runs=_typed("token_runs", _get(raw, "token_runs", "the raw result"), TOKEN_RUN_COLUMNS),
            timeline=_timeline(_get(raw, "timeline", "the raw result")),
            transfers=_typed("transfers", _get(raw, "transfers", "the raw result"), TRANSFER_COLUMNS),
            totals=totals,
            clusters=clusters_from_raw(_get(raw, "clusters", "the raw result"), totals["replicas"]),
            decision_log=raw.get("decision_log"),
        )


def engine_arrival_ns(requests: Table) -> Ints:
    """Return when each finished request reached its engine, in its last attempt.

    Its arrival where no API servers are modelled and nothing was lost.
    """
    reached: Ints = requests["arrival_ns"] + requests["e2e_lost_ns"] + requests["e2e_ingress_ns"]
    return reached


def left_ns(requests: Table) -> Ints:
    """Return when each request left, finished or failed; -1 where it never did.

    The time of a failed request is on its account up to the moment at which it was given up.
    """
    given_up: Ints = requests["arrival_ns"].copy()
    for cause in ATTRIBUTION_CAUSES:
        given_up += requests[f"e2e_{cause}_ns"]
    left: Ints = np.where(requests["status"] == FAILED, given_up, requests["finished_ns"])
    return left


def client_stamps_ns(requests: Table) -> tuple[Ints, Ints]:
    """Return when each client had the first and the last token, -1 where it never had.

    The ends of the steps that made them where no API servers are modelled.
    """
    first, finished = requests["first_token_ns"], requests["finished_ns"]
    return (
        np.where(first == NEVER, NEVER, first + requests["ttft_delivery_ns"]),
        np.where(finished == NEVER, NEVER, finished + requests["e2e_delivery_ns"]),
    )


def _get(table: Mapping[str, Any], name: str, where: str) -> Any:
    if name not in table:
        raise InvariantError(f"{where} lacks '{name}' (has {', '.join(sorted(map(str, table)))})")
    return table[name]


def _read_only(column: Column) -> Column:
    view = column.view()
    view.flags.writeable = False
    return view


def _same_length(name: str, table: Table) -> None:
    lengths = {column: len(values) for column, values in table.items()}
    if len(set(lengths.values())) > 1:
        raise InvariantError(f"columns of {name} differ in length: {lengths}")


def _typed(name: str, raw: Mapping[str, Any], schema: Mapping[str, np.dtype[Any]]) -> Table:
    unknown = sorted(set(raw) - set(schema))
    if unknown:
        raise InvariantError(f"{name} has unknown columns {', '.join(unknown)}")
    table = {}
    for column, dtype in schema.items():
        values = np.asarray(_get(raw, column, name))
        if values.dtype != dtype or values.ndim != 1:
            raise InvariantError(f"{name}.{column} was {values.ndim}-d {values.dtype}, must be 1-d {dtype}")
        table[column] = _read_only(values)
    _same_length(name, table)
    return table


def _timeline(raw: Mapping[str, Any]) -> Table:
    """Widen gauges and counters to int64, so that differences cannot wrap; integrals stay float64."""
    unknown = sorted(set(raw) - set(TIMELINE_COLUMNS))
    if unknown:
        raise InvariantError(f"timeline has unknown columns {', '.join(unknown)}")
    table = {}
    for column in TIMELINE_COLUMNS:
        values = np.asarray(_get(raw, column, "timeline"))
        if values.ndim != 1 or values.dtype.kind not in "iuf":
            raise InvariantError(f"timeline.{column} was {values.ndim}-d {values.dtype}, must be 1-d numbers")
        dtype = _F64 if column in TIMELINE_FLOATS else _U32 if column == "replica" else _I64
        table[column] = _read_only(values.astype(dtype, casting="unsafe", copy=False))
    _same_length("timeline", table)
    return table


def _totals(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    totals = {}
    for name, kind in TOTALS.items():
        value = _get(raw, name, "totals")
        try:
            totals[name] = kind(value)
        except (TypeError, ValueError):
            raise InvariantError(f"totals.{name} was {value!r}, must be {kind.__name__}") from None
    return totals


def _offsets(offsets: Column, replicas: int, rows: int) -> Ints:
    good = (
        offsets.ndim == 1
        and offsets.dtype.kind in "iu"
        and len(offsets) == replicas + 1
        and int(offsets[0]) == 0
        and int(offsets[-1]) == rows
    )
    widened: Ints = offsets.astype(np.int64) if good else np.empty(0, np.int64)
    if not good or bool((np.diff(widened) < 0).any()):
        raise InvariantError(
            f"steps.replica_offsets was {np.atleast_1d(offsets)[:8].tolist()}, must rise from 0 to {rows} "
            f"in {replicas + 1} entries"
        )
    widened.flags.writeable = False
    return widened
