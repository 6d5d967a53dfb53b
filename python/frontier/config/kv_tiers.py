"""Tiers of KV below the device: host memory, local disk, a remote pool, and how blocks move between them.

Everything passes through the host, as in both engines: in vLLM's `TieringOffloadingSpec` only the CPU tier
has access to the GPU (docs of 0.27, "KV Offloading Usage Guide"), and SGLang's HiCache reads its storage
into host memory. What is left out follows `rules`:

| | `vllm`: OffloadingConnector | `sglang`: HiCache 0.5 |
|---|---|---|
| `write_policy` | `write_through` | `write_through` |
| `load` | `async` | `layerwise` |
| `min_load` | 1 token (so one block) | 10 tokens |
| `prefetch` | none | `best_effort` from 256 tokens, where there is a disk or remote pool |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema, field_validator

from frontier import units
from frontier.config.base import Section
from frontier.config.fields import Duration, Flag, PositiveDuration, Tokens, TokensOrZero
from frontier.errors import show_value

DISK_READ_BYTES_PER_S: Final = 6.5e9
DISK_WRITE_BYTES_PER_S: Final = 3.5e9
"""Samsung PM9A3 (U.2, PCIe 4.0), one drive: sequential rates of its announcement of 2020."""
DISK_LATENCY_NS: Final = 100_000
"""An NVMe read: 92 to 150 us (data sheet of the Micron 9200)."""

SGLANG_MIN_LOAD_TOKENS: Final = 10
SGLANG_PREFETCH_TOKENS: Final = 256
PREFETCH_SHARE: Final = 0.8
"""Of the host's blocks beyond the device's, which prefetches may hold before admission (SGLang 0.5,
`prefetch_capacity_limit`)."""
PREFETCH_TIMEOUT_NS: Final = 1_000_000_000
PREFETCH_TIMEOUT_PER_KI_TOKEN_NS: Final = 250_000_000
"""SGLang 0.5: `prefetch_timeout_base` and `prefetch_timeout_per_ki_token`."""
DEFAULT_TTL_NS: Final = 600_000_000_000

MAX_BANDWIDTH_BYTES_PER_S: Final = 1e15
MAX_DEVICE_RATIO: Final = 1e6


def parse_size(value: object) -> int:
    """Read a size that is not zero."""
    size = units.parse_bytes(value)
    if size < 1:
        raise ValueError(f"was {show_value(value)}, must be at least 1 byte")
    return size


def parse_link_bandwidth(value: object) -> float:
    """Read a bandwidth of at least one byte per second."""
    bandwidth = units.parse_bandwidth(value)
    if not 1 <= bandwidth <= MAX_BANDWIDTH_BYTES_PER_S:
        raise ValueError(f"was {show_value(value)}, must be from 1B/s to 1000TB/s")
    return bandwidth


def parse_offloading_size(value: object) -> int:
    """Read a size; a bare number is GiB, as in vLLM's `--kv-offloading-size`."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        units.parse_number(value)
        return parse_size(round(value * 2**30))
    return parse_size(value)


_SIZE_SCHEMA: Final[dict[str, Any]] = {
    "anyOf": [
        {"type": "string", "pattern": r"^\s*[0-9][0-9_]*(\.[0-9]*)?([eE][-+]?[0-9]+)?\s*[kKMGTP]?i?B\s*$"},
        {"type": "integer", "minimum": 1},
    ],
    "description": "A size with its unit; a bare number is bytes.",
    "examples": ["200GiB", "4TB"],
}
_BANDWIDTH_SCHEMA: Final[dict[str, Any]] = {
    "type": "string",
    "description": "A bandwidth: `GB/s` is bytes, `Gbps` bits.",
    "examples": ["50GB/s", "400Gbps"],
}
_write_size = PlainSerializer(units.format_bytes, return_type=str)

Size = Annotated[int, BeforeValidator(parse_size), _write_size, WithJsonSchema(_SIZE_SCHEMA)]
Bandwidth = Annotated[
    float,
    BeforeValidator(parse_link_bandwidth),
    PlainSerializer(units.format_bandwidth, return_type=str),
    WithJsonSchema(_BANDWIDTH_SCHEMA),
]
OffloadingSize = Annotated[
    int,
    BeforeValidator(parse_offloading_size),
    _write_size,
    WithJsonSchema({**_SIZE_SCHEMA, "description": "A size; a bare number is GiB, as in vLLM's flag."}),
]


class KvTier(Section):
    """One tier."""

    tier: Literal["host", "disk", "remote"]
    """What it is; tiers are listed from fast to slow, the host first."""
    capacity: Size | None = None
    """Its size, for all ranks of a replica together (of a shared pool: for all replicas)."""
    device_ratio: (
        Annotated[float, Field(gt=0, le=MAX_DEVICE_RATIO), BeforeValidator(units.parse_number)] | None
    ) = None
    """Its size in place of `capacity`: blocks per block of the device (SGLang's `hicache_ratio`)."""
    read_bandwidth: Bandwidth | None = None
    """Towards the device; of host and remote pool per GPU, of the disk per replica. Left out, of the host:
    the GPU's PCIe bandwidth, of the remote pool: its network's, both times the GPU's link efficiency; of the
    disk: 6.5 GB/s."""
    write_bandwidth: Bandwidth | None = None
    """Into the tier, as above; of the disk 3.5 GB/s."""
    latency: Duration | None = None
    """Before the first byte of a transfer; left out, that of the GPU's PCIe or network link, of the disk 100
    us."""
    eviction: Literal["lru", "lfu", "arc", "ttl"] = "lru"
    """Which blocks leave a full tier: the least recently or least often used, those that ARC (Megiddo and
    Modha 2003) chooses, or those not used for `ttl`."""
    ttl: PositiveDuration | None = None
    """Time since its last use after which a block is gone, with eviction ttl; left out, 10 min."""
    shared: Flag = False
    """One remote pool for all replicas, which reach it over links of their own."""

    @field_validator("eviction", mode="before")
    @classmethod
    def _no_oracle(cls, value: Any) -> Any:
        if value == "belady":
            raise ValueError(
                "was 'belady', which needs the future: only `frontier kv-cache`, on a trace, knows it"
                " (allowed: lru, lfu, arc, ttl)"
            )
        return value


class Prefetch(Section):
    """Reading from disk or remote pool into the host when a request arrives."""

    policy: Literal["best_effort", "wait_complete", "timeout"] = "best_effort"
    """What admission does before it is done: use what has arrived (the rest goes on to the host), wait, or
    wait until a time-out."""
    min_tokens: Tokens = SGLANG_PREFETCH_TOKENS
    """Fewest tokens worth reading ahead."""
    timeout: Duration | None = None
    """With policy timeout: from arrival on; left out, 1 s."""
    timeout_per_ki_token: Duration | None = None
    """With policy timeout: more of it per 1024 tokens; left out, 250 ms."""


@dataclass(frozen=True, slots=True)
class EffectiveMoves:
    """How blocks move, nothing left out but a prefetch that there is not; fields as in `KvTiers`."""

    write_policy: str
    load: str
    min_load: int
    prefetch: Prefetch | None


class KvTiers(Section):
    """Tiers of KV below the device, and how blocks move between them."""

    tiers: Annotated[tuple[KvTier, ...], Field(min_length=1, max_length=3)]
    """From fast to slow; the first is the host."""
    rules: Literal["vllm", "sglang"] = "vllm"
    """Whose defaults the fields below follow where they are left out."""
    write_policy: Literal["write_through", "write_through_selective", "write_back"] | None = None
    """When blocks are copied to the tiers: every full block in the step after its own; those used twice; or
    when the device needs the block for something else."""
    load: Literal["async", "layerwise"] | None = None
    """How blocks come back: the request is put aside and a later step goes on with it (vLLM), or its step
    loads them layer by layer (SGLang)."""
    min_load: TokensOrZero | None = None
    """Fewest tokens worth a load."""
    prefetch: Prefetch | None = None
    """Reading ahead into the host, with layer-wise loads."""

    def effective(self) -> EffectiveMoves:
        """Return what applies, defaults filled in."""
        sglang = self.rules == "sglang"
        load = self.load or ("layerwise" if sglang else "async")
        prefetch = self.prefetch
        if prefetch is None and sglang and load == "layerwise" and len(self.tiers) > 1:
            prefetch = Prefetch()
        min_load = self.min_load
        if min_load is None:
            min_load = SGLANG_MIN_LOAD_TOKENS if sglang else 1
        return EffectiveMoves(
            write_policy=self.write_policy or "write_through",
            load=load,
            min_load=min_load,
            prefetch=prefetch,
        )
