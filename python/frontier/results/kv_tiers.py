"""What the tiers of KV did in a run: hits and bytes by tier."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from frontier.errors import InvariantError


@dataclass(frozen=True, slots=True)
class KvTier:
    """What one tier did over the whole run, all replicas together.

    Attributes:
        tier: "device", "host", "disk" or "remote".
        lookup_blocks: full prompt blocks asked for that no faster tier had, over first admissions.
        hit_blocks: those of them that were found here and used.
        hit_tokens: the same in tokens. With asynchronous loads one token of a prompt that was found as a
            whole is computed again.
        read_bytes: bytes read from the tier, per link: of one rank where every rank has its own.
        written_bytes: bytes written to it, per link.
        read_busy_ns: time in which the link from it was taken, summed over replicas.
        write_busy_ns: time in which the link to it was taken, summed over replicas.
        inserted_blocks: blocks that came in, by whatever way.
        evicted_blocks: blocks that had to leave for others.
        expired_blocks: blocks that reached their time to live.
        refused_blocks: blocks that were not kept, because everything here was in use.
        peak_blocks: most blocks held at once, summed over replicas.

    Of the device only look-ups and hits are known.
    """

    tier: str
    lookup_blocks: int
    hit_blocks: int
    hit_tokens: int
    read_bytes: int
    written_bytes: int
    read_busy_ns: int
    write_busy_ns: int
    inserted_blocks: int
    evicted_blocks: int
    expired_blocks: int
    refused_blocks: int
    peak_blocks: int

    @property
    def hit_rate(self) -> float | None:
        """Share of the blocks asked for here that were found here, None if none was."""
        return self.hit_blocks / self.lookup_blocks if self.lookup_blocks else None

    def to_raw(self) -> dict[str, Any]:
        """Return the values by name."""
        return asdict(self)


def kv_tiers_from_raw(rows: Iterable[Mapping[str, Any]]) -> tuple[KvTier, ...]:
    """Take the list that `frontier._frontier.simulate` returns.

    Raises:
        InvariantError: a row has other fields or values than `KvTier`.
    """
    names = {each.name for each in fields(KvTier)}
    tiers = []
    for row in rows:
        if set(row) != names:
            raise InvariantError(f"kv_tiers has the fields {', '.join(sorted(map(str, row)))}")
        wrong = [name for name in names if name != "tier" and not _is_count(row[name])]
        if wrong:
            raise InvariantError(f"kv_tiers.{wrong[0]} was {row[wrong[0]]!r}, must be a count")
        tiers.append(KvTier(**row))
    return tuple(tiers)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
