"""Results of a run of several clusters: frames, figures by cluster, transfers, trust, GPUs that differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fifo import ACTIVE_S_PER_STEP, FLOPS_PER_STEP, MS, Ask, facts
from fifo import run as run_of_one
from hypothesis import given, settings
from hypothesis import strategies as st
from run_of_two_clusters import (
    FLIGHT_MS,
    KV_BYTES,
    PREFILL_MS,
    REQUESTS,
    TOKENS,
    WAIT_MS,
    pools,
    raw_run,
    run,
)

from frontier.errors import ConfigError, InvariantError
from frontier.results import ClusterFacts, Result, RunFacts, Trust
from frontier.results.facts import joined_step_time
from frontier.results.transfers import first_engine, union_ns

DECODE_STEPS = REQUESTS * TOKENS
END_S = 3.18  # the last request arrives at 3 s, takes 60 ms to the decoding engine and 120 ms there


def test_frames_name_the_cluster_and_count_replicas_within_it() -> None:
    result = run(wide_steps=True)
    assert result.requests["cluster"].to_list() == ["decode"] * REQUESTS
    assert result.requests["replica"].to_list() == [0] * REQUESTS
    assert result.requests["dp_rank"].to_list() == [0, 1, 0, 1]
    steps = result.steps
    assert steps["cluster"].to_list() == ["prefill"] * REQUESTS + ["decode"] * DECODE_STEPS
    assert steps["dp_rank"].to_list() == [0] * (REQUESTS + DECODE_STEPS // 2) + [1] * (DECODE_STEPS // 2)
    timeline = result.timeline.filter(time_s=1.0)
    assert timeline.select("cluster", "replica", "dp_rank").rows() == [
        ("prefill", 0, 0),
        ("decode", 0, 0),
        ("decode", 0, 1),
    ]
    assert "replicas: prefill 1, decode 1 of 2 data parallel ranks" in repr(result)


def test_kv_use_is_of_the_pool_of_each_engine() -> None:
    raw = raw_run()
    timeline = raw["timeline"]
    timeline["used_blocks"][:2] = (10, 20)
    timeline["peak_used_blocks"][[1, 4]] = 20  # held at both ends of an interval
    frame = Result(raw, facts()).timeline
    assert frame["kv_use"].to_list()[:2] == [10 / 50, 20 / 100]
    timeline["peak_used_blocks"][:2] = (51, 100)
    with pytest.raises(InvariantError, match="peak_used_blocks exceeds the 50 usable blocks"):
        Result(raw, facts())


def test_the_frame_of_transfers() -> None:
    frame = run().transfers
    assert frame.columns[:9] == [
        "request",
        *(f"{end}_{part}" for end in ("source", "destination") for part in ("cluster", "replica", "dp_rank")),
        "ready_s",
        "start_s",
    ]
    assert frame.row(1, named=True) == {
        "request": 1,
        "source_cluster": "prefill",
        "source_replica": 0,
        "source_dp_rank": 0,
        "destination_cluster": "decode",
        "destination_replica": 0,
        "destination_dp_rank": 1,
        "ready_s": 1.04,
        "start_s": 1.045,
        "end_s": 1.06,
        "wait_s": 0.005,
        "flight_s": 0.015,
        "bytes": KV_BYTES,
        "ready_ns": 1040 * MS,
        "start_ns": 1045 * MS,
        "end_ns": 1060 * MS,
    }


def test_kv_that_moves_before_its_prompt_is_done_waits_for_nothing() -> None:
    raw = raw_run()
    raw["transfers"]["start_ns"] -= 20 * MS
    result = Result(raw, facts())
    assert result.transfers["wait_s"].to_list() == [0.0] * REQUESTS
    assert result.summary().p99_kv_transfer_flight_s == pytest.approx((FLIGHT_MS + 20) / 1e3)


def test_figures_by_cluster() -> None:
    summary = run().summary()
    prefill_s, decode_s = REQUESTS * PREFILL_MS / 1e3, REQUESTS * 0.12
    assert summary.gpu_busy_share_by_cluster == pytest.approx(
        {"prefill": prefill_s / END_S, "decode": decode_s / END_S / 2}
    )
    assert summary.gpu_busy_share == pytest.approx((prefill_s + decode_s) / END_S / 3)
    assert summary.num_steps_by_cluster == {"prefill": REQUESTS, "decode": DECODE_STEPS}
    assert summary.peak_kv_use_by_cluster == {"prefill": 25 / 50, "decode": 10 / 100}
    assert summary.peak_kv_use == 0.5
    held = {"prefill": 25 * prefill_s, "decode": 10 * decode_s}
    assert summary.mean_kv_use_by_cluster == pytest.approx(
        {"prefill": held["prefill"] / END_S / 50, "decode": held["decode"] / END_S / 200}
    )
    assert summary.mean_kv_use == pytest.approx(sum(held.values()) / END_S / 250)
    assert summary.prefix_hit_rate_by_cluster == {"prefill": 60 / 400}  # all prompts came there first
    later = run().summary(start=2.0)
    assert later.num_steps_by_cluster == {"prefill": 2, "decode": 6}
    assert later.prefix_hit_rate_by_cluster == {"prefill": 50 / 200}


def test_metrics_of_transfers() -> None:
    summary = run().summary()
    assert (summary.kv_transfers, summary.kv_transfer_gb) == (REQUESTS, REQUESTS * KV_BYTES / 1e9)
    assert summary.kv_transfer_gb_per_s == pytest.approx(KV_BYTES / 1e9 / (FLIGHT_MS / 1e3))
    for stat in ("mean", "median", "p50", "p90", "p99"):
        assert summary[f"{stat}_kv_transfer_wait_s"] == pytest.approx(WAIT_MS / 1e3)
        assert summary[f"{stat}_kv_transfer_flight_s"] == pytest.approx(FLIGHT_MS / 1e3)
    part = run().summary(start=1.0, end=2.05)  # the third one ends at 2.06 s
    assert part.kv_transfers == 1


def test_times_of_transfers_have_the_percentiles_of_numpy() -> None:
    raw = raw_run()
    delays = np.array([0, 3, 1, 2], np.int64) * MS
    raw["transfers"]["start_ns"] += delays
    summary = Result(raw, facts()).summary()
    waits = (WAIT_MS * MS + delays) / 1e9
    assert summary.mean_kv_transfer_wait_s == pytest.approx(waits.mean())
    assert summary.p90_kv_transfer_wait_s == pytest.approx(np.percentile(waits, 90))
    assert summary.p99_kv_transfer_flight_s == pytest.approx(np.percentile(0.02 - waits, 99))


INTERVALS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10)), max_size=8)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(intervals=INTERVALS)
def test_busy_time_counts_each_instant_once(intervals: list[tuple[int, int]]) -> None:
    begin, length = np.array(intervals, np.int64).reshape(-1, 2).T
    covered = {now for start, time in intervals for now in range(start, start + time)}
    assert union_ns(begin, begin + length) == len(covered)


def test_the_first_engine_of_a_request_is_where_its_first_hand_over_began() -> None:
    raw = raw_run()
    assert first_engine(Result(raw, facts()).columns).tolist() == [0] * REQUESTS
    raw["transfers"] = {name: column[1:] for name, column in raw["transfers"].items()}
    raw["transfers"]["request"] = np.array([1, 2, 2], np.uint32)
    raw["transfers"]["source"] = np.array([0, 2, 1], np.uint32)
    assert first_engine(Result(raw, facts(), check=False).columns).tolist() == [1, 0, 2, 2]


def test_latency_goes_to_transfers_too() -> None:
    split = run().attribution("ttft")
    assert split.causes_ns["kv_transfer_wait"] == REQUESTS * WAIT_MS * MS
    assert split.causes_ns["kv_transfer"] == REQUESTS * FLIGHT_MS * MS
    assert sum(split.causes_ns.values()) == split.total_ns
    assert "kv_transfer_wait" in str(split)
    assert {"ttft_kv_transfer_s", "e2el_kv_transfer_wait_s"} <= set(run().requests.columns)
    assert "kv_transfer_wait" in run().summary()._repr_html_()


def test_text_has_a_section_of_clusters_and_one_of_transfers() -> None:
    text = str(run().summary())
    assert "GPU busy, decode" in text
    assert "KV transfers\n" in text
    assert "Rate while any is in flight" in text


def test_a_run_of_one_cluster_says_nothing_of_clusters() -> None:
    result = run_of_one([Ask(0, 3), Ask(10 * MS, 3)])
    summary = result.summary()
    odd = [name for name in summary if "_by_cluster" in name or "kv_transfer" in name]
    assert len(odd) == 16
    assert all(summary[name] is None for name in odd)
    text = str(summary) + str(result.attribution("ttft"))
    assert "Clusters" not in text
    assert "ransfer" not in text
    assert "kv_transfer" not in result.attribution("ttft").causes_ns
    assert "cluster" not in result.requests.columns
    assert "cluster" not in result.timeline.columns
    assert result.transfers.height == 0


def test_saved_results_keep_their_clusters(tmp_path: Path) -> None:
    result = Result(raw_run(step_times=("learned", "linear")), pools(step_time="learned+linear"))
    again = Result.load(result.save(tmp_path / "run"))
    assert again.columns.clusters == result.columns.clusters
    assert again.facts == result.facts
    assert again.transfers.equals(result.transfers)
    assert again.summary() == result.summary()
    assert (
        json.loads((tmp_path / "run" / "result.json").read_text("utf-8"))["clusters"][1]["name"] == "decode"
    )


def operator(name: str, measured: float, extrapolated: float, distance: float | None) -> dict[str, Any]:
    row = {"operator": name, "measured_s": measured, "interpolated_s": 0.0}
    row |= {"extrapolated_s": extrapolated, "unmeasured_s": 0.0}
    far = {"feature": "kv_max", "value": distance, "low": 0.0, "high": 1.0, "distance": distance}
    return row | (far if distance is not None else dict.fromkeys(far))


def test_trust_adds_up_over_clusters() -> None:
    raw = raw_run()
    raw["clusters"][0]["trust"] = [operator("o_proj", 1.0, 2.0, 3.0), operator("norm", 4.0, 0.0, None)]
    raw["clusters"][1]["trust"] = [operator("o_proj", 8.0, 16.0, 5.0), operator("sampler", 32.0, 0.0, None)]
    result = Result(raw, facts())
    merged = {each.operator: each for each in result.trust.operators}
    assert list(merged) == ["o_proj", "norm", "sampler"]
    assert (merged["o_proj"].measured_s, merged["o_proj"].extrapolated_s) == (9.0, 18.0)
    assert merged["o_proj"].distance == 5.0
    assert result.clusters[0].trust == Trust.from_raw(raw["clusters"][0]["trust"])
    assert result.summary().gpu_time_by_provenance["extrapolated"] == pytest.approx(18 / 63)


def test_only_learned_clusters_warn_of_what_was_not_measured() -> None:
    doubtful, sound = [operator("o_proj", 0.0, 1.0, 2.0)], [operator("o_proj", 9.0, 0.0, None)]
    for learned, roofline, warns in ((doubtful, sound, True), (sound, doubtful, False)):
        raw = raw_run(step_times=("learned", "roofline"))
        raw["clusters"][0]["trust"], raw["clusters"][1]["trust"] = learned, roofline
        warnings = Result(raw, facts(step_time="learned+roofline")).summary().warnings
        assert any("extrapolated" in warning for warning in warnings) == warns


def test_the_label_of_step_times_joins_distinct_ways() -> None:
    assert joined_step_time(["learned", "roofline", "learned"]) == "learned+roofline"
    result = run(facts(step_time="learned+linear"), step_times=("learned", "linear"))
    assert result.step_time == result.summary().step_time == "learned+linear"
    assert result.summary().mfu is None  # a formula knows no operations
    with pytest.raises(InvariantError, match="'learned', the run says 'learned\\+linear'"):
        run(facts(step_time="learned"), step_times=("learned", "linear"))
    for wrong in ("learned+guessed", "learned+learned", "+", ""):
        with pytest.raises(ConfigError, match="step_time"):
            facts(step_time=wrong)


def test_gpus_that_differ_add_up() -> None:
    summary = run(pools()).summary()
    flops = DECODE_STEPS * FLOPS_PER_STEP
    assert summary.mfu == pytest.approx(flops / (END_S * (2e15 + 3 * 1e15)))
    assert summary.cost_per_hour_usd == 6.0 + 3 * 2.0
    active_s = DECODE_STEPS * ACTIVE_S_PER_STEP
    assert summary.energy_j == pytest.approx(100 * END_S + 50 * 3 * END_S + 450 * active_s)


def test_equal_gpus_give_equal_figures_in_one_pool_or_two() -> None:
    values = {"gpu_price_per_hour_usd": 3.0, "peak_flops_per_s": 1e15, "memory_bandwidth_bytes_per_s": 2e12}
    values |= {"idle_power_w": 70.0, "peak_power_w": 700.0, "max_model_len": 8192}
    two = (ClusterFacts("prefill", 1, **values), ClusterFacts("decode", 3, **values))
    apart = run(facts(**dict.fromkeys(values), clusters=two)).summary().to_dict()
    together = run(facts(**values)).summary().to_dict()
    for name in ("mfu", "mbu", "energy_j", "mean_power_per_gpu_w", "cost_per_hour_usd"):
        assert apart[name] == pytest.approx(together[name])


def test_what_one_pool_does_not_know_nobody_does() -> None:
    (first, second), known = pools().clusters, pools()
    for name, metric in (("peak_flops_per_s", "mfu"), ("peak_power_w", "energy_j")):
        poor = ClusterFacts(**{**second.to_dict(), name: None})
        changed = RunFacts.from_dict({**known.to_dict(), "clusters": [first.to_dict(), poor.to_dict()]})
        assert run(changed).summary()[metric] is None
        assert run(known).summary()[metric] is not None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpus_total": 5}, "must be what clusters have together"),
        ({"peak_flops_per_s": 1e15}, "each of clusters has its own"),
        ({"max_model_len": 4096}, "each of clusters has its own"),
        ({"clusters": [{"name": "prefill"}]}, "must have name and gpus"),
        ({"clusters": [{"name": "prefill", "gpus": 0}]}, "must be a whole number of at least 1"),
        ({"clusters": [{"name": "", "gpus": 4}]}, "must be a word"),
        ({"clusters": [{"name": "a", "gpus": 4, "peak_power_w": -1.0}]}, "must be a number of 0 or more"),
        ({"clusters": [{"name": "a", "gpus": 4, "idle_power_w": 9.0, "peak_power_w": 1.0}]}, "at most peak"),
    ],
)
def test_facts_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunFacts.from_dict({**pools().to_dict(), **changes})


def test_facts_of_other_clusters_are_refused() -> None:
    raw = raw_run()
    raw["clusters"][0]["name"] = "prompts"
    with pytest.raises(InvariantError, match="clusters prefill, decode, the run is of prompts, decode"):
        Result(raw, pools())


def test_the_longest_request_is_that_of_its_cluster() -> None:
    raw = raw_run()
    raw["requests"]["output_tokens"][1] += 1  # one token short
    first, second = pools().clusters
    for cluster_of_limit, good in ((1, True), (0, False)):
        limits = [8192, 8192]
        limits[cluster_of_limit] = 103
        clusters = [
            ClusterFacts(**{**each.to_dict(), "max_model_len": limit})
            for each, limit in zip((first, second), limits, strict=True)
        ]
        run_facts = RunFacts.from_dict(
            {**pools().to_dict(), "clusters": [each.to_dict() for each in clusters]}
        )
        if good:
            Result(raw, run_facts)
        else:
            with pytest.raises(InvariantError, match="finished before it generated"):
                Result(raw, run_facts)
