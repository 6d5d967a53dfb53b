"""What a run says of each of its clusters: engines, KV blocks, and what its step times are and rest on.

Engines are numbered through all clusters, in the order of the plan: those of one cluster lie side by side.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from frontier.errors import InvariantError, show_value
from frontier.results.kv_tiers import KvTier, kv_tiers_from_raw
from frontier.results.trust import Trust

_COUNTS = ("replicas", "data_parallel_size", "num_blocks")
_STEPS = ("num_steps", "num_empty_steps")
_FIELDS = ("name", *_COUNTS, *_STEPS, "step_time", "trust", "kv_tiers")


@dataclass(frozen=True, slots=True)
class ClusterColumns:
    """One cluster of a run.

    Attributes:
        name: name, unique in the run.
        engines: numbers of its engines in all tables: all data parallel ranks of all its replicas.
        data_parallel_size: engines of a replica; rank r of replica n is engine n * size + r of the cluster.
        num_blocks: KV blocks of each engine, the null block included.
        num_steps: steps of its engines over the whole run, empty ones left out.
        num_empty_steps: their empty steps.
        step_time: how its step times were made.
        trust: what these rest on, over all its engines.
        kv_tiers: what its tiers of KV did, the device first; empty without tiers.
    """

    name: str
    engines: range
    data_parallel_size: int
    num_blocks: int
    num_steps: int
    num_empty_steps: int
    step_time: str
    trust: Trust
    kv_tiers: tuple[KvTier, ...] = ()

    @property
    def replicas(self) -> int:
        """Replicas, each with all its data parallel ranks."""
        return len(self.engines) // self.data_parallel_size

    @property
    def usable_blocks(self) -> int:
        """KV blocks of each engine that requests can hold."""
        return max(self.num_blocks - 1, 0)

    @property
    def slice(self) -> slice:
        """Its engines in an array with one entry per engine of the run."""
        return slice(self.engines.start, self.engines.stop)

    def to_raw(self) -> dict[str, Any]:
        """Return plain values that `clusters_from_raw` takes."""
        return {
            "name": self.name,
            "replicas": len(self.engines),
            "data_parallel_size": self.data_parallel_size,
            "num_blocks": self.num_blocks,
            "num_steps": self.num_steps,
            "num_empty_steps": self.num_empty_steps,
            "step_time": self.step_time,
            "trust": self.trust.to_raw(),
            "kv_tiers": [tier.to_raw() for tier in self.kv_tiers],
        }


def clusters_from_raw(rows: Iterable[Mapping[str, Any]], engines: int) -> tuple[ClusterColumns, ...]:
    """Take the list that `frontier._frontier.simulate` returns, of a run with so many engines.

    There `replicas` of a cluster counts its engines.

    Raises:
        InvariantError: a row has other fields or values than a cluster, two have the same name, or they have
            other engines than the run.
    """
    clusters: list[ClusterColumns] = []
    first = 0
    for row in rows:
        _check_row(row)
        stop = first + row["replicas"]
        clusters.append(
            ClusterColumns(
                name=row["name"],
                engines=range(first, stop),
                data_parallel_size=row["data_parallel_size"],
                num_blocks=row["num_blocks"],
                num_steps=row["num_steps"],
                num_empty_steps=row["num_empty_steps"],
                step_time=row["step_time"],
                trust=Trust.from_raw(row["trust"]),
                kv_tiers=kv_tiers_from_raw(row["kv_tiers"]),
            )
        )
        first = stop
    names = [cluster.name for cluster in clusters]
    if not names or len(set(names)) < len(names):
        raise InvariantError(
            f"clusters are {', '.join(names) or 'none'}; there must be some, of different names"
        )
    if first != engines:
        raise InvariantError(f"clusters have {first} engines, totals.replicas says {engines}")
    return tuple(clusters)


def _check_row(row: Mapping[str, Any]) -> None:
    if not isinstance(row, Mapping) or set(row) != set(_FIELDS):
        raise InvariantError(f"clusters has the row {show_value(row)}, must have {', '.join(_FIELDS)}")
    for name in ("name", "step_time"):
        if not isinstance(row[name], str) or not row[name]:
            raise InvariantError(f"clusters.{name} was {show_value(row[name])}, must be a word")
    for least, names in ((1, _COUNTS), (0, _STEPS)):
        for name in names:
            if not isinstance(row[name], int) or isinstance(row[name], bool) or row[name] < least:
                value = show_value(row[name])
                message = f"clusters.{name} of {row['name']} was {value}, must be at least {least}"
                raise InvariantError(message)
    if row["replicas"] % row["data_parallel_size"]:
        raise InvariantError(
            f"clusters: {row['name']} has {row['replicas']} engines, not a multiple of its "
            f"{row['data_parallel_size']} data parallel ranks"
        )


def merged_trust(clusters: Iterable[ClusterColumns]) -> Trust:
    """Return what the step times of all clusters rest on: operators of one name are put together."""
    return Trust(operator for cluster in clusters for operator in cluster.trust.operators)


def merged_kv_tiers(clusters: Iterable[ClusterColumns]) -> tuple[KvTier, ...]:
    """Return what the tiers of all clusters did: those of one name are put together."""
    merged: dict[str, KvTier] = {}
    for cluster in clusters:
        for tier in cluster.kv_tiers:
            known = merged.get(tier.tier)
            merged[tier.tier] = tier if known is None else _sum(known, tier)
    return tuple(merged.values())


def _sum(one: KvTier, other: KvTier) -> KvTier:
    counts = [each.name for each in fields(KvTier) if each.name != "tier"]
    return KvTier(one.tier, **{name: getattr(one, name) + getattr(other, name) for name in counts})
