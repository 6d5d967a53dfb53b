"""Tiers of KV in a scenario: what they come to in blocks and bytes, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest

import frontier
from frontier.config import Scenario
from frontier.errors import Issue
from frontier.lowering import lower

HOST = {"tier": "host", "capacity": "100GiB"}
REMOTE = {"tier": "remote", "capacity": "1TiB"}
EAGLE = {"method": "eagle3", "num_speculative_tokens": 3, "acceptance": 0.7}

Problems = Callable[..., dict[str, Issue]]


def lowered(base: Scenario, **changes: Any) -> dict[str, Any]:
    """Return the plan's `kv_tiers` of the base with these settings of the engine."""
    plan = lower(base.with_({f"engine.{name}": value for name, value in changes.items()})).plan
    tiers: dict[str, Any] = plan["clusters"][0]["kv_tiers"]
    return tiers


def tiers(*given: dict[str, Any], **moves: Any) -> dict[str, Any]:
    return {"engine": {"kv_tiers": {"tiers": list(given), **moves}}}


def test_without_tiers_the_plan_has_none(base: Scenario) -> None:
    assert lower(base).plan["clusters"][0]["kv_tiers"] is None


def test_an_offloading_size_is_a_host_tier_as_vllm_uses_it(base: Scenario) -> None:
    plan = lowered(base, kv_offloading_size=100)
    block = 16 * 32 * 2 * 8 * 128 * 2  # tokens, layers, K and V, heads, head size, bytes
    assert plan == {
        "tiers": [
            {
                "kind": "host",
                "capacity_blocks": 100 * 2**30 // block,
                "bytes_per_block": block,
                "read_bytes_per_s": 51_200_000_000,  # PCIe 5.0 x16 times the link efficiency
                "write_bytes_per_s": 51_200_000_000,
                "latency_ns": 10_000,
                "eviction": {"policy": "lru"},
                "shared": False,
            }
        ],
        "write_policy": "write_through",
        "load": "async",
        "min_load_tokens": 1,
        "num_layers": 32,
        "prefetch": None,
    }
    assert lowered(base, kv_offloading_size="100GiB") == plan
    assert lowered(base, kv_tiers={"tiers": [HOST]}) == plan


def test_every_rank_has_its_link_and_a_disk_carries_all(base: Scenario) -> None:
    one = lowered(base, kv_tiers={"tiers": [HOST, {"tier": "disk", "capacity": "1TiB"}, REMOTE]})
    two = lowered(
        base,
        kv_tiers={"tiers": [HOST, {"tier": "disk", "capacity": "1TiB"}, REMOTE]},
        tensor_parallel_size=2,
    )
    host, disk, remote = ([plan["tiers"][at] for plan in (one, two)] for at in range(3))
    for lone, both in (host, remote):
        assert both["bytes_per_block"] * 2 == lone["bytes_per_block"]
        assert both["capacity_blocks"] == lone["capacity_blocks"]
    assert disk[0]["bytes_per_block"] == disk[1]["bytes_per_block"]
    assert (disk[0]["read_bytes_per_s"], disk[0]["write_bytes_per_s"]) == (6_500_000_000, 3_500_000_000)
    assert remote[0]["read_bytes_per_s"] == 40_000_000_000  # 400 Gb/s times the link efficiency


def test_sglang_rules_are_those_of_hicache(base: Scenario) -> None:
    host = {"tier": "host", "device_ratio": 2}
    plan = lowered(base, kv_tiers={"tiers": [host, REMOTE], "rules": "sglang"})
    blocks = base.resolve().num_blocks
    assert plan["tiers"][0]["capacity_blocks"] == 2 * blocks
    assert (plan["write_policy"], plan["load"], plan["min_load_tokens"]) == ("write_through", "layerwise", 10)
    assert plan["prefetch"] == {
        "min_tokens": 256,
        "max_blocks": int(0.8 * blocks),
        "policy": "best_effort",
        "timeout_ns": 1_000_000_000,
        "timeout_per_ki_token_ns": 250_000_000,
    }
    assert lowered(base, kv_tiers={"tiers": [host], "rules": "sglang"})["prefetch"] is None


def test_tiers_survive_writing_and_reading(base: Scenario) -> None:
    host = {**HOST, "eviction": "ttl", "ttl": "5min", "read_bandwidth": "20GB/s"}
    scenario = base.with_({"engine.kv_tiers": {"tiers": [host, {**REMOTE, "shared": True}]}})
    assert Scenario.from_dict(scenario.to_dict()) == scenario
    assert Scenario.from_yaml(scenario.to_yaml()) == scenario


@pytest.mark.parametrize(
    ("engine", "path", "message"),
    [
        (tiers(), "engine.kv_tiers.tiers", "1"),
        (tiers(REMOTE), "engine.kv_tiers.tiers", "the host at least"),
        (tiers(HOST, HOST), "engine.kv_tiers.tiers", "each once"),
        (tiers({"tier": "host"}), "engine.kv_tiers.tiers.0.capacity", "give one"),
        (tiers({**HOST, "device_ratio": 2}), "engine.kv_tiers.tiers.0.capacity", "has both"),
        (tiers({**HOST, "capacity": "1MiB"}), "engine.kv_tiers.tiers.0.capacity", "holds no block"),
        (tiers({**HOST, "capacity": 0}), "engine.kv_tiers.tiers.0.capacity", "at least 1 byte"),
        (tiers({**HOST, "ttl": "1s"}), "engine.kv_tiers.tiers.0.ttl", "only with ttl"),
        (tiers({**HOST, "shared": True}), "engine.kv_tiers.tiers.0.shared", "only a remote pool"),
        (tiers({**HOST, "eviction": "belady"}), "engine.kv_tiers.tiers.0.eviction", "needs the future"),
        (tiers({**HOST, "read_bandwidth": "0GB/s"}), "engine.kv_tiers.tiers.0.read_bandwidth", "1B/s"),
        (tiers(HOST, prefetch={}), "engine.kv_tiers.prefetch", "load async"),
        (tiers(HOST, load="layerwise", prefetch={}), "engine.kv_tiers.prefetch", "without a disk"),
        (tiers(HOST, REMOTE, load="layerwise"), "engine.kv_tiers.prefetch", "read from remote"),
        (
            tiers(HOST, REMOTE, rules="sglang", prefetch={"timeout": "1s"}),
            "engine.kv_tiers.prefetch.timeout",
            "only with timeout",
        ),
        (
            tiers({**HOST, "capacity": "1GiB"}, REMOTE, rules="sglang"),
            "engine.kv_tiers.tiers.0.capacity",
            "more than the device's",
        ),
        ({"engine": {"kv_offloading_size": 0}}, "engine.kv_offloading_size", "at least 1 byte"),
        ({"engine": {"kv_offloading_size": "1KiB"}}, "engine.kv_offloading_size", "holds no block"),
        (
            {"engine": {"kv_offloading_size": 1, "speculative": EAGLE}},
            "engine.kv_offloading_size",
            "does not go with engine.speculative eagle3",
        ),
        (
            {"model": "gpt-oss-20b", "engine": {"kv_offloading_size": 1}},
            "engine.kv_offloading_size",
            "set engine.disable_hybrid_kv_cache_manager",
        ),
        (
            {"model": "gpt-oss-20b", **tiers(HOST)},
            "engine.kv_tiers",
            "set engine.disable_hybrid_kv_cache_manager",
        ),
        (
            # vLLM's switch changes nothing where all layers have windows, so it is no way out.
            {"model": "mistral-7b-v0.1", "engine": {"kv_offloading_size": 1}},
            "engine.kv_offloading_size",
            "does not go with mistral-7b-v0.1: tiers for sliding windows are not modelled",
        ),
        (
            {"engine": {"name": "sglang", "kv_offloading_size": 1}},
            "engine.kv_offloading_size",
            "no effect on sglang",
        ),
        (
            {"engine": {"kv_offloading_size": 1, "kv_tiers": {"tiers": [HOST]}}},
            "engine.kv_offloading_size",
            "give the host there",
        ),
        (
            {"engine": {"kv_offloading_size": 1, "enable_prefix_caching": False}},
            "engine.kv_offloading_size",
            "needs engine.enable_prefix_caching",
        ),
    ],
)
def test_what_has_no_effect_or_no_meaning_is_refused(
    problems: Problems, engine: dict[str, Any], path: str, message: str
) -> None:
    assert message in str(problems(**engine)[path])


def test_a_gpu_without_a_network_needs_a_bandwidth(problems: Problems) -> None:
    engine = {"max_model_len": 4096, **tiers(HOST, REMOTE)["engine"]}
    issues = problems(hardware="rtx-4090", model="qwen3-4b", engine=engine)
    assert "has no network" in str(issues["engine.kv_tiers.tiers.1.read_bandwidth"])


def test_results_tell_hits_and_bytes_by_tier(base: Scenario) -> None:
    prefixes = {"count": 60, "tokens": 4096}
    scenario = base.with_(
        {
            "engine.num_gpu_blocks_override": 6_000,
            "engine.max_model_len": 8192,
            "engine.kv_offloading_size": 100,
            "workload.synthetic.shared_prefix": prefixes,
        }
    )
    result = frontier.simulate(scenario)
    device, host = result.kv_tiers
    assert (device.tier, host.tier) == ("device", "host")
    assert host.lookup_blocks == device.lookup_blocks - device.hit_blocks
    # Preempted requests load as well, and are not counted again.
    assert host.read_bytes % 2**21 == 0
    assert host.read_bytes >= host.hit_blocks * 2**21
    assert host.written_bytes == host.inserted_blocks * 2**21
    assert host.hit_rate is not None
    assert host.hit_rate > 0.1
    assert result.summary().ttft_attribution_s["kv_load"] > 0
    hits = (device.hit_blocks + host.hit_blocks) * 16
    assert result.totals["prefix_hit_tokens"] in range(hits - 100, hits + 1)
