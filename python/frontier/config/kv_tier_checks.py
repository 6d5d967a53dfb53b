"""What is wrong with tiers of KV, and what they come to in blocks and bytes per second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from frontier.config.kv_tiers import (
    DEFAULT_TTL_NS,
    DISK_LATENCY_NS,
    DISK_READ_BYTES_PER_S,
    DISK_WRITE_BYTES_PER_S,
    PREFETCH_SHARE,
    PREFETCH_TIMEOUT_NS,
    PREFETCH_TIMEOUT_PER_KI_TOKEN_NS,
    KvTier,
    KvTiers,
)
from frontier.errors import Issue

if TYPE_CHECKING:
    from frontier.config.engine import Engine
    from frontier.hardware import GpuSpec
    from frontier.memory import MemoryPlan
    from frontier.models import ModelSpec

_KINDS = ("host", "disk", "remote")
_DRAFTS_WITH_KV = ("draft_model", "eagle", "eagle3", "mtp")
"""Methods of speculative decoding whose drafts keep KV of their own beside the target's."""


def tiers_of(engine: Engine) -> KvTiers | None:
    """Return the tiers of an engine: those given, or the host tier of `kv_offloading_size`."""
    if engine.kv_offloading_size is None:
        return engine.kv_tiers
    return KvTiers(tiers=(KvTier(tier="host", capacity=engine.kv_offloading_size),))


_ONE_RANK: Final = (
    "pipeline_parallel_size",
    "data_parallel_size",
    "decode_context_parallel_size",
    "prefill_context_parallel_size",
)
"""Sizes above 1 for which no tiers are modelled; tensor parallel ranks each hold their part of a block."""


def kv_tier_issues(engine: Engine, known: Callable[..., bool]) -> list[Issue]:
    """Return the problems of the tiers that need neither model nor GPU."""
    issues: list[Issue] = []

    def report(path: str, value: object, message: str) -> None:
        issues.append(Issue(f"engine.{path}", value, message))

    tiers = engine.kv_tiers
    field = "kv_tiers" if tiers is not None else "kv_offloading_size"
    if tiers is None and engine.kv_offloading_size is None:
        return issues
    if not known(f"engine.{field}"):
        return issues
    if tiers is not None and engine.kv_offloading_size is not None:
        message = "is one host tier; with kv_tiers, give the host there and remove this"
        report("kv_offloading_size", engine.kv_offloading_size, message)
    if known("engine.enable_prefix_caching") and not engine.enable_prefix_caching:
        report(field, None, "needs engine.enable_prefix_caching: without it no block can be found again")
    drafts = engine.speculative
    if drafts is not None and drafts.method in _DRAFTS_WITH_KV and known("engine.speculative"):
        message = (
            f"does not go with engine.speculative {drafts.method}: tiers for the drafts' KV are not modelled"
        )
        report(field, None, message)
    for name in _ONE_RANK:
        size = getattr(engine, name)
        if size > 1 and known(f"engine.{name}"):
            report(
                field, None, f"does not go with engine.{name} {size}: tiers of spread ranks are not modelled"
            )
    policy = engine.scheduling_policy.chosen
    if policy not in ("fcfs", "priority") and known("engine.scheduling_policy"):
        report(
            field, None, f"does not go with engine.scheduling_policy {policy}, only with fcfs and priority"
        )
    if tiers is None:
        return issues
    kinds = tuple(tier.tier for tier in tiers.tiers)
    if kinds != tuple(kind for kind in _KINDS if kind in kinds) or kinds[0] != "host":
        message = (
            f"was {', '.join(kinds)}, must be host, then disk, then remote, each once, the host at least"
        )
        report("kv_tiers.tiers", list(kinds), message)
    for index, tier in enumerate(tiers.tiers):
        issues += _tier_issues(tier, f"engine.kv_tiers.tiers.{index}")
    moves = tiers.effective()
    if tiers.prefetch is not None and (moves.load == "async" or len(kinds) == 1):
        message = (
            "has no effect with load async, which reads from all tiers when it admits; remove it"
            if moves.load == "async"
            else "has no effect without a disk or remote pool to read from; remove it"
        )
        report("kv_tiers.prefetch", tiers.prefetch.policy, message)
    elif moves.load == "layerwise" and len(kinds) > 1 and moves.prefetch is None:
        message = f"is needed with load layerwise to read from {' and '.join(kinds[1:])}; give it"
        report("kv_tiers.prefetch", None, message)
    prefetch = tiers.prefetch
    if prefetch is not None and prefetch.policy != "timeout":
        for name in ("timeout", "timeout_per_ki_token"):
            if getattr(prefetch, name) is not None:
                message = f"has no effect with policy {prefetch.policy}, only with timeout; remove it"
                report(f"kv_tiers.prefetch.{name}", getattr(prefetch, name), message)
    return issues


def _tier_issues(tier: KvTier, path: str) -> list[Issue]:
    issues = []
    sizes = (tier.capacity is not None) + (tier.device_ratio is not None)
    if sizes != 1:
        message = "has both, must have one of them" if sizes else "was not given, nor device_ratio; give one"
        issues.append(Issue(f"{path}.capacity", tier.capacity, message))
    if tier.ttl is not None and tier.eviction != "ttl":
        message = f"has no effect with eviction {tier.eviction}, only with ttl; remove it"
        issues.append(Issue(f"{path}.ttl", tier.ttl, message))
    if tier.shared and tier.tier != "remote":
        message = f"was true, but the {tier.tier} is of one replica; only a remote pool can be shared"
        issues.append(Issue(f"{path}.shared", True, message))
    return issues


@dataclass(frozen=True, slots=True)
class TierFacts:
    """A tier in blocks and bytes.

    Attributes:
        kind: "host", "disk" or "remote".
        capacity_blocks: blocks that it holds.
        bytes_per_block: bytes of a block that cross one link.
        read_bytes_per_s: bandwidth of that link towards the device.
        write_bytes_per_s: bandwidth into the tier.
        latency_ns: before the first byte.
        eviction: the plan's `eviction`.
        shared: whether all replicas share it.
    """

    kind: str
    capacity_blocks: int
    bytes_per_block: int
    read_bytes_per_s: int
    write_bytes_per_s: int
    latency_ns: int
    eviction: dict[str, Any]
    shared: bool

    def to_plan(self) -> dict[str, Any]:
        """Return the plan's `KvTierSpec`."""
        return {name: getattr(self, name) for name in self.__slots__}


def tier_facts(
    tier: KvTier, path: str, *, gpu: GpuSpec, memory: MemoryPlan, ranks: int, replicas: int
) -> TierFacts | Issue:
    """Return what a tier comes to on this GPU with this memory plan, or why it cannot be told.

    A block is `memory.bytes_per_block` on each of `ranks` ranks. Every rank has its own PCIe link and its own
    network link, over which it moves its part; a disk carries all parts.
    """
    block = memory.bytes_per_block * ranks
    if tier.capacity is not None:
        blocks = tier.capacity // block
    else:
        assert tier.device_ratio is not None
        blocks = int(memory.num_gpu_blocks * tier.device_ratio * (replicas if tier.shared else 1))
    if blocks < 1:
        message = f"holds no block, which takes {block:,} bytes; make it larger"
        field = "capacity" if tier.capacity is not None else "device_ratio"
        return Issue(f"{path}.{field}", getattr(tier, field), message)
    read: float | None
    write: float | None
    if tier.tier == "disk":
        read, write, latency = DISK_READ_BYTES_PER_S, DISK_WRITE_BYTES_PER_S, DISK_LATENCY_NS
    else:
        host = tier.tier == "host"
        link = gpu.pcie_bandwidth_bytes_per_s if host else gpu.nic_bandwidth_bytes_per_s
        latency = gpu.pcie_latency_ns if host else gpu.nic_latency_ns
        read = write = None if link is None else link * gpu.link_efficiency
    read = tier.read_bandwidth or read
    write = tier.write_bandwidth or write
    if read is None or write is None:
        field = "read_bandwidth" if read is None else "write_bandwidth"
        return Issue(f"{path}.{field}", None, f"was not given, and {gpu.name} has no network; give it")
    eviction: dict[str, Any] = {"policy": tier.eviction}
    if tier.eviction == "ttl":
        eviction["ttl_ns"] = tier.ttl or DEFAULT_TTL_NS
    return TierFacts(
        kind=tier.tier,
        capacity_blocks=blocks,
        bytes_per_block=block if tier.tier == "disk" else memory.bytes_per_block,
        read_bytes_per_s=round(read),
        write_bytes_per_s=round(write),
        latency_ns=latency if tier.latency is None else tier.latency,
        eviction=eviction,
        shared=tier.shared,
    )


def resolve_kv_tiers(
    engine: Engine, *, spec: ModelSpec, gpu: GpuSpec, memory: MemoryPlan, ranks: int, replicas: int
) -> tuple[dict[str, Any] | None, list[Issue]]:
    """Return the plan's `kv_tiers` (None without tiers) and what is wrong with them."""
    tiers = tiers_of(engine)
    if tiers is None:
        return None, []
    single = engine.kv_tiers is None
    if memory.kv_group_windows:
        message = (
            f"does not go with the hybrid KV cache manager that {spec.name} has for its sliding windows; set"
            " engine.disable_hybrid_kv_cache_manager to true, as vLLM does for connectors that lack it"
        )
        if None not in memory.kv_group_windows:  # layers of one kind: vLLM's switch leaves them as they are
            message = f"does not go with {spec.name}: tiers for sliding windows are not modelled"
        return None, [Issue("engine.kv_offloading_size" if single else "engine.kv_tiers", None, message)]
    issues, facts = [], []
    for index, tier in enumerate(tiers.tiers):
        path = f"engine.kv_tiers.tiers.{index}"
        found = tier_facts(tier, path, gpu=gpu, memory=memory, ranks=ranks, replicas=replicas)
        if isinstance(found, Issue):
            issues.append(Issue("engine.kv_offloading_size", found.value, found.message) if single else found)
        else:
            facts.append(found.to_plan())
    moves = tiers.effective()
    prefetch = moves.prefetch
    ahead = 0
    if prefetch is not None and facts and facts[0]["kind"] == "host":
        ahead = int(PREFETCH_SHARE * (facts[0]["capacity_blocks"] - memory.num_gpu_blocks))
        if ahead < 1:
            message = (
                f"holds {facts[0]['capacity_blocks']:,} blocks, must hold more than the device's"
                f" {memory.num_gpu_blocks:,} with a prefetch, which reads into what exceeds them"
            )
            field = "capacity" if tiers.tiers[0].capacity is not None else "device_ratio"
            issues.append(Issue(f"engine.kv_tiers.tiers.0.{field}", getattr(tiers.tiers[0], field), message))
    per_ki = None if prefetch is None else prefetch.timeout_per_ki_token
    plan = {
        "tiers": facts,
        "write_policy": moves.write_policy,
        "load": moves.load,
        "min_load_tokens": moves.min_load,
        "num_layers": spec.num_layers,
        "prefetch": None
        if prefetch is None
        else {
            "min_tokens": prefetch.min_tokens,
            "max_blocks": max(ahead, 0),
            "policy": prefetch.policy,
            "timeout_ns": PREFETCH_TIMEOUT_NS if prefetch.timeout is None else prefetch.timeout,
            "timeout_per_ki_token_ns": PREFETCH_TIMEOUT_PER_KI_TOKEN_NS if per_ki is None else per_ki,
        },
    }
    return plan, issues
