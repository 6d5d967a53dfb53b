"""Prefix hits in the Mooncake conversation trace: as published, in caches of every size, in whole runs."""

import json
from collections import OrderedDict
from pathlib import Path

import mooncake_archive
import pytest

import frontier
from frontier.config import Scenario
from frontier.errors import ConfigError
from frontier.kv_study import POLICIES, HitCurve, hit_curve
from frontier.workloads import load_trace

LOOKUPS, HITS = 288_500, 105_710
CAPACITIES = (1_000, 10_000, 50_000)


@pytest.fixture(scope="module")
def rows() -> list[mooncake_archive.Row]:
    return mooncake_archive.unpack(mooncake_archive.ARCHIVE.read_bytes())


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mooncake_archive.write_trace(tmp_path_factory.mktemp("mooncake") / "conversation_trace.jsonl")


@pytest.fixture(scope="module")
def curve(trace: Path) -> HitCurve:
    everything = hit_curve(load_trace(trace), capacities=[1], policies=["lru"])
    return hit_curve(load_trace(trace), capacities=[*CAPACITIES, everything.distinct_blocks])


def test_the_archive_is_the_published_trace(shared: Path, trace: Path) -> None:
    published = shared / "traces" / "mooncake" / "conversation_trace.jsonl"
    if not published.is_file():
        pytest.skip(f"no {published}")
    rows = [json.loads(line) for line in published.read_text().splitlines()]
    assert [json.loads(line) for line in trace.read_text().splitlines()] == rows


def test_an_infinite_cache_hits_as_published(curve: HitCurve) -> None:
    assert (curve.requests, curve.lookup_blocks, curve.block_size) == (12_031, LOOKUPS, 512)
    assert curve.distinct_blocks == LOOKUPS - HITS
    for policy in ("lru", "lfu", "arc", "belady"):
        point = curve.at(policy, curve.distinct_blocks)
        assert (point.hit_blocks, point.single_hit_blocks, point.evicted_blocks) == (HITS, HITS, 0)
    assert round(100 * HITS / LOOKUPS, 1) == 36.6


def test_a_time_to_live_loses_blocks_that_rest_longer(
    curve: HitCurve, rows: list[mooncake_archive.Row]
) -> None:
    last: dict[int, int] = {}
    expected = 0
    for row in rows:
        now = row["timestamp"] - rows[0]["timestamp"]
        alive = [block in last and now < last[block] + 600_000 for block in row["hash_ids"]]
        expected += next((at for at, there in enumerate(alive) if not there), len(alive))
        last.update(dict.fromkeys(row["hash_ids"], now))
    assert curve.at("ttl", curve.distinct_blocks).hit_blocks == expected


def test_lru_is_that_of_an_ordered_dict(curve: HitCurve, rows: list[mooncake_archive.Row]) -> None:
    for capacity in CAPACITIES:
        cache: OrderedDict[int, None] = OrderedDict()
        hits = 0
        for row in rows:
            blocks = row["hash_ids"]
            hits += next((at for at, block in enumerate(blocks) if block not in cache), len(blocks))
            for block in reversed(blocks):
                if block in cache:
                    cache.move_to_end(block)
                else:
                    if len(cache) == capacity:
                        cache.popitem(last=False)
                    cache[block] = None
        assert curve.at("lru", capacity).hit_blocks == hits


def test_curves_rise_and_the_oracle_is_on_top(curve: HitCurve) -> None:
    sizes = (*CAPACITIES, curve.distinct_blocks)
    for policy in ("lru", "belady"):  # stack algorithms: a larger cache holds all that a smaller one does
        singles = [curve.at(policy, size).single_hit_blocks for size in sizes]
        assert singles == sorted(singles)
    for size in sizes:
        best = curve.at("belady", size).single_hit_blocks
        assert all(curve.at(policy, size).single_hit_blocks <= best for policy in POLICIES)


@pytest.mark.parametrize("load", ["async", "layerwise"])
def test_a_run_with_tiers_large_enough_finds_every_full_block(
    trace: Path, rows: list[mooncake_archive.Row], load: str
) -> None:
    seen: set[int] = set()
    expected = 0
    for row in rows:
        blocks = row["hash_ids"]
        found = next((at for at, block in enumerate(blocks) if block not in seen), len(blocks))
        expected += min(found, row["input_length"] // 512)  # an engine caches full blocks alone
        seen.update(blocks)
    host = {"tier": "host", "capacity": "20TB"}
    linear = {"linear": {"per_step": "5ms", "per_prefill_token": "1us"}}
    scenario = Scenario.from_dict(
        {
            "model": "llama-3.1-8b",
            "hardware": "h100",
            "engine": {
                "block_size": 512,
                "step_time": linear,
                "kv_tiers": {"tiers": [host], "load": load},
            },
            "workload": {"trace": str(trace)},
        }
    )
    tiers = frontier.simulate(scenario).kv_tiers
    assert tiers[0].lookup_blocks == sum(row["input_length"] // 512 for row in rows) == 276_491
    assert sum(tier.hit_blocks for tier in tiers) == expected == HITS - 118
    assert tiers[0].hit_blocks < expected / 4  # the device alone holds little of it


def test_values_that_are_not_allowed_are_named(trace: Path) -> None:
    loaded = load_trace(trace, max_requests=10)
    with pytest.raises(ConfigError, match="did you mean 'lru'"):
        hit_curve(loaded, policies=["lur"])
    with pytest.raises(ConfigError, match="capacities: was 0"):
        hit_curve(loaded, capacities=[0])
    with pytest.raises(ConfigError, match="block_size: was -1"):
        hit_curve(loaded, block_size=-1)
