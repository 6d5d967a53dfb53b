"""How much a prefix cache of each size and policy would find in a trace: no engine, no time but the trace's.

A request looks up the leading run of its prompt's blocks; then all its blocks are used, the last one first,
as vLLM frees and touches them. A last, partial block counts like a full one: it is found where a prompt ends
in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from frontier.errors import ConfigError, Issue, nearest_name, show_value
from frontier.workloads.formats import FORMATS

if TYPE_CHECKING:
    from frontier import _frontier
    from frontier.workloads import LoadedTrace

POLICIES: Final = ("lru", "lfu", "arc", "ttl", "belady")
"""LRU, LFU, ARC (Megiddo and Modha 2003), time to live, and Belady's oracle, which knows the future and has
the most hits of all that take in every block they miss (counted block by block)."""

DEFAULT_TTL_NS: Final = 600_000_000_000
DEFAULT_BLOCK_SIZE: Final = 16
_MAX_BLOCKS: Final = 2**63


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """What a cache of one size and policy found.

    Attributes:
        policy: one of `POLICIES`.
        capacity_blocks: its size.
        lookup_blocks: blocks asked for, over all requests.
        hit_blocks: blocks in the leading runs that were found: what a prefix cache can use.
        single_hit_blocks: blocks found one by one, behind a gap or not.
        evicted_blocks: blocks that had to leave or ran out of time.
    """

    policy: str
    capacity_blocks: int
    lookup_blocks: int
    hit_blocks: int
    single_hit_blocks: int
    evicted_blocks: int

    @property
    def hit_rate(self) -> float:
        """Share of the blocks asked for that a prefix cache could use."""
        return self.hit_blocks / self.lookup_blocks


@dataclass(frozen=True, slots=True)
class HitCurve:
    """Hit rates of policies over cache sizes, on one trace.

    Attributes:
        block_size: tokens per block.
        requests: requests of the trace.
        lookup_blocks: blocks asked for.
        distinct_blocks: how many of them differ; a cache of this size never drops any.
        points: one per policy and capacity, in this order.
    """

    block_size: int
    requests: int
    lookup_blocks: int
    distinct_blocks: int
    points: tuple[CurvePoint, ...]

    def at(self, policy: str, capacity_blocks: int) -> CurvePoint:
        """Return the point of one policy and capacity.

        Raises:
            KeyError: there is none.
        """
        for point in self.points:
            if (point.policy, point.capacity_blocks) == (policy, capacity_blocks):
                return point
        raise KeyError(f"no point for {policy} with {capacity_blocks} blocks")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        points = [
            {**{name: getattr(point, name) for name in point.__slots__}, "hit_rate": point.hit_rate}
            for point in self.points
        ]
        return {**{name: getattr(self, name) for name in self.__slots__}, "points": points}


def hit_curve(
    trace: LoadedTrace,
    *,
    capacities: Sequence[int] | None = None,
    policies: Iterable[str] = POLICIES,
    block_size: int | None = None,
    ttl_ns: int = DEFAULT_TTL_NS,
) -> HitCurve:
    """Replay the prompts of a trace through caches of each size and policy.

    Args:
        trace: as `frontier.workloads.load_trace` returns it.
        capacities: sizes in blocks; left out, eight from a thousandth of the distinct blocks to all of them,
        where nothing is ever dropped.
        policies: of `POLICIES`.
        block_size: tokens per block; left out, that of the trace's block hashes, else 16.
        ttl_ns: for policy `ttl`, time since its last use after which a block is gone.

    Raises:
        ConfigError: a value is not one of those allowed.
    """
    from frontier import _frontier  # noqa: PLC0415 - keeps imports light

    size = block_size_of(trace) if block_size is None else block_size
    names = tuple(policies)
    _check(capacities, names, size, ttl_ns)
    lookups = _frontier.BlockLookups(trace.to_trace(), size)
    distinct = lookups.distinct()
    sizes = list(capacities) if capacities is not None else default_capacities(distinct)
    points = [
        point for name in names for point in _points(lookups, name, sizes, plan_of_policy(name, ttl_ns))
    ]
    return HitCurve(size, len(trace), len(lookups), distinct, tuple(points))


def block_size_of(trace: LoadedTrace) -> int:
    """Return the tokens per block hash of the trace's format, 16 where it has none."""
    known = FORMATS.get(trace.report.format)
    return (known.block_size if known is not None else None) or DEFAULT_BLOCK_SIZE


def default_capacities(distinct_blocks: int) -> list[int]:
    """Return sizes from a thousandth of the distinct blocks to all of them."""
    parts = (1000, 300, 100, 30, 10, 3, 1.5, 1)
    return sorted({max(round(distinct_blocks / part), 1) for part in parts})


def plan_of_policy(name: str, ttl_ns: int) -> dict[str, Any]:
    """Return the plan's `eviction`."""
    return {"policy": name, "ttl_ns": ttl_ns} if name == "ttl" else {"policy": name}


def _points(
    lookups: _frontier.BlockLookups, policy: str, capacities: list[int], eviction: Mapping[str, Any]
) -> list[CurvePoint]:
    curve = lookups.hit_curve(json.dumps(eviction), capacities)
    columns = [curve[name].tolist() for name in ("lookups", "prefix_hits", "block_hits", "evictions")]
    rows = zip(capacities, *columns, strict=True)
    return [CurvePoint(policy, capacity, *counts) for capacity, *counts in rows]


def _check(capacities: Sequence[int] | None, policies: tuple[str, ...], block_size: int, ttl_ns: int) -> None:
    issues = [
        Issue("policies", name, f"was {show_value(name)}", POLICIES, nearest_name(name, POLICIES))
        for name in policies
        if name not in POLICIES
    ]
    counts = [("capacities", value, _MAX_BLOCKS) for value in capacities or ()]
    for path, value, most in [*counts, ("block_size", block_size, 2**31), ("ttl_ns", ttl_ns, 2**63)]:
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            message = f"was {show_value(value)}, must be a whole number from 1 to {most}"
            issues.append(Issue(path, value, message))
    if not policies:
        issues.append(Issue("policies", [], "was empty", POLICIES))
    if issues:
        raise ConfigError(issues)
