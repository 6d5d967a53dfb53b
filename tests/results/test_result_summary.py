"""Metrics against closed forms and against a plain reading of vLLM's definitions."""

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from fifo import BLOCKS_PER_REQUEST, BYTES_PER_STEP, FLOPS_PER_STEP, MS, Ask, S, facts, fifo, run

from frontier.results import METRICS, Objectives, Result, Summary

# Two requests overlap: the second waits 100 ms.  tokens: 5 and 3; service 140 ms and 120 ms.
PAIR = [Ask(0, 5, prompt=100), Ask(40 * MS, 3, prompt=200)]
PAIR_TTFT = np.array([0.100, 0.200])
PAIR_E2E = np.array([0.140, 0.220])


def uneven(count: int = 300) -> list[Ask]:
    """Return requests of varied lengths on two replicas, some of them waiting."""
    rng = np.random.default_rng(7)
    arrivals = np.cumsum(rng.integers(10 * MS, 150 * MS, count))
    return [
        Ask(int(at), int(rng.integers(1, 12)), replica=index % 2, prompt=int(rng.integers(1, 900)))
        for index, at in enumerate(arrivals)
    ]


def test_latencies_of_a_pair() -> None:
    summary = run(PAIR).summary()
    assert summary.mean_ttft_s == pytest.approx(0.150)
    assert summary.std_ttft_s == pytest.approx(0.050)
    assert summary.p50_ttft_s == summary.median_ttft_s == pytest.approx(0.150)
    assert summary.p99_ttft_s == pytest.approx(0.199)
    assert summary.max_ttft_s == 0.2
    assert summary.mean_tpot_s == summary.mean_itl_s == summary.p99_itl_s == 0.01
    assert summary.mean_e2el_s == pytest.approx(0.180)
    assert summary.mean_ttft_ci95_s is None


def test_throughput_and_counts_of_a_pair() -> None:
    summary = run(PAIR).summary()
    assert summary.duration == 0.26
    assert (summary.arrived, summary.completed, summary.measured_requests) == (2, 2, 2)
    assert (summary.total_input_tokens, summary.total_output_tokens) == (300, 8)
    assert summary.request_throughput == pytest.approx(2 / 0.26)
    assert summary.output_throughput == pytest.approx(8 / 0.26)
    assert summary.total_token_throughput == pytest.approx(308 / 0.26)
    assert summary.output_throughput_per_gpu == pytest.approx(2 / 0.26)
    assert summary.max_output_tokens_per_s == 8
    assert summary.max_concurrent_requests == summary.peak_concurrent_requests == 2
    assert summary.mean_concurrent_requests == pytest.approx((0.140 + 0.220) / 0.26)
    assert summary.gpus == 4


def test_utilisation_and_cost_of_a_pair() -> None:
    summary = run(PAIR).summary()
    steps = 8
    assert summary.gpu_busy_share == pytest.approx(1.0)
    assert summary.mean_kv_use == pytest.approx(BLOCKS_PER_REQUEST / 100)
    assert summary.mfu == pytest.approx(steps * FLOPS_PER_STEP / (4 * 0.26 * 1e15))
    assert summary.mbu == pytest.approx(steps * BYTES_PER_STEP / (4 * 0.26 * 2e12))
    assert summary.cost_per_hour_usd == 12.0
    assert summary.cost_per_million_output_tokens_usd == pytest.approx(12 / 3600 * 0.26 / 8 * 1e6)
    assert summary.cost_per_million_total_tokens_usd == pytest.approx(12 / 3600 * 0.26 / 308 * 1e6)
    assert summary.prefix_hit_rate == 0.0


def test_whole_run_follows_the_definitions_of_vllm_bench() -> None:
    asks = uneven()
    result = run(asks, facts(objectives=Objectives(ttft_s=0.15, tpot_s=0.02, e2e_s=0.25)), replicas=2)
    summary, requests = result.summary(), result.requests
    ttft = (requests["first_token_ns"] - requests["arrival_ns"]).to_numpy() / 1e9
    e2el = (requests["finished_ns"] - requests["arrival_ns"]).to_numpy() / 1e9
    tokens = np.array([ask.tokens for ask in asks])
    many = tokens > 1
    tpot = (e2el - ttft)[many] / (tokens - 1)[many]
    itl = np.repeat(0.010, (tokens - 1).sum())
    for key, values in {"ttft": ttft, "tpot": tpot, "itl": itl, "e2el": e2el}.items():
        assert summary[f"mean_{key}_s"] == pytest.approx(values.mean())
        assert summary[f"std_{key}_s"] == pytest.approx(values.std(), abs=1e-9)
        assert summary[f"median_{key}_s"] == pytest.approx(np.median(values))
        for q in (90, 95, 99):
            assert summary[f"p{q}_{key}_s"] == pytest.approx(np.percentile(values, q))
    duration = result.totals["end_ns"] / 1e9
    good = (ttft <= 0.15) & (e2el <= 0.25)
    assert 0 < good.sum() < len(asks)
    assert summary.request_goodput == pytest.approx(good.sum() / duration)
    assert summary.slo_attainment == pytest.approx(good.mean())
    assert summary.slo_attainment_ttft == pytest.approx((ttft <= 0.15).mean())
    assert summary.slo_attainment_tpot == 1.0
    assert summary.slo_attainment_itl is None
    assert summary.total_output_tokens == tokens.sum()
    busy = [sum(0.1 + 0.01 * (ask.tokens - 1) for ask in asks if ask.replica == r) for r in (0, 1)]
    assert summary.gpu_busy_share == pytest.approx(sum(busy) / 2 / duration)
    moments = np.sort(np.concatenate([requests["arrival_s"].to_numpy(), requests["finished_s"].to_numpy()]))
    levels = [((requests["arrival_s"] <= at) & (requests["finished_s"] > at)).sum() for at in moments]
    assert summary.peak_concurrent_requests == max(levels)
    assert summary.mean_concurrent_requests == pytest.approx(e2el.sum() / duration)  # Little's law


def test_rows_of_the_trace_are_shown_as_numbers() -> None:
    summary = run(PAIR, facts(trace_rows_read=12_345, trace_rows_skipped=3)).summary()
    assert (summary.trace_rows_read, summary.to_dict()["trace_rows_skipped"]) == (12_345, 3)
    for text in (str(summary), summary._repr_html_()):
        assert "12,345" in text
        assert "Rows skipped" in text
    without = run(PAIR).summary()
    assert (without.trace_rows_read, without.trace_rows_skipped) == (None, None)
    assert "Rows" not in str(without) + without._repr_html_()


def test_vllm_bench_keys() -> None:
    bench = run(PAIR, facts(objectives=Objectives(ttft_s=0.1))).summary().to_vllm_bench()
    assert bench["p99_ttft_ms"] == pytest.approx(199.0)
    assert bench["request_goodput"] == pytest.approx(1 / 0.26)
    assert (bench["failed"], bench["completed"], bench["step_time"]) == (0, 2, "roofline")
    expected = {"duration", "completed", "failed", "total_input_tokens", "total_output_tokens", "step_time"}
    expected |= {"request_throughput", "request_goodput", "output_throughput", "total_token_throughput"}
    expected |= {"max_output_tokens_per_s", "max_concurrent_requests"}
    stats = ("mean", "median", "std", "p90", "p95", "p99")
    expected |= {f"{stat}_{key}_ms" for stat in stats for key in ("ttft", "tpot", "itl", "e2el")}
    assert set(bench) == expected


def test_a_one_token_request_meets_tpot_and_itl_objectives() -> None:
    objectives = Objectives(tpot_s=0.005, itl_s=0.005)
    summary = run([Ask(0, 1), Ask(S, 2)], facts(objectives=objectives)).summary()
    assert (summary.slo_attainment_tpot, summary.slo_attainment_itl, summary.slo_attainment) == (
        0.5,
        0.5,
        0.5,
    )
    exact = run([Ask(0, 2)], facts(objectives=Objectives(itl_s=0.01, ttft_s=0.1))).summary()
    assert exact.slo_attainment == 1.0  # at most the objective, as in vLLM


def test_rejected_and_unfinished_requests_miss_objectives() -> None:
    asks = [Ask(0, 2), Ask(0, 2, reject=1), Ask(0, 2, reject=2), Ask(S // 2, 900)]
    summary = run(asks, facts(objectives=Objectives(e2e_s=60.0)), stop_ns=S).summary()
    assert summary.slo_attainment == 0.25
    assert (summary.arrived, summary.measured_requests, summary.rejected, summary.unfinished) == (4, 1, 2, 1)
    assert summary.rejected_by_reason == {"exceeds_max_model_len": 1, "exceeds_kv_cache": 1}
    assert (summary.max_concurrent_requests, summary.peak_concurrent_requests) == (1, 1)
    assert any("2 of 4 requests were rejected" in warning for warning in summary.warnings)
    assert any("1 requests had not finished" in warning for warning in summary.warnings)


@pytest.mark.parametrize(
    "asks", [[], [Ask(0, 3, reject=1), Ask(S, 3, reject=2)]], ids=["none", "all rejected"]
)
def test_empty_results_are_none_or_zero(asks: list[Ask]) -> None:
    result = run(asks, facts(objectives=Objectives(ttft_s=1.0)), wide_steps=True)
    summary = result.summary()
    for name, value in summary.items():
        if isinstance(value, float) and name not in ("duration", "window_end_s", "cost_per_hour_usd"):
            assert value == 0.0, name
    assert (summary.completed, summary.total_output_tokens, summary.arrived) == (0, 0, len(asks))
    assert summary.mean_ttft_s is None
    assert summary.cost_per_million_output_tokens_usd is None
    assert summary.slo_attainment == (0.0 if asks else None)
    assert summary.saturation == "too short to tell"
    assert result.attribution("e2el", 99).mean_s is None
    assert (result.requests.height, result.steps.height) == (len(asks), 0)
    json.dumps(summary.to_dict(), allow_nan=False)
    for text in (
        str(summary),
        summary._repr_html_(),
        result._repr_html_(),
        str(result.attribution()),
        repr(result),
    ):
        assert "nan" not in text.lower()
        assert "None" not in text


def test_facts_that_are_missing_leave_their_metrics_out() -> None:
    unknown = facts(gpu_price_per_hour_usd=None, peak_flops_per_s=None, memory_bandwidth_bytes_per_s=None)
    summary = run(PAIR, unknown).summary()
    for name in ("mfu", "mbu", "cost_per_hour_usd", "cost_per_million_output_tokens_usd", "request_goodput"):
        assert summary[name] is None
    assert summary.gpu_busy_share is not None


def test_linear_step_times_know_no_operations() -> None:
    summary = run(PAIR, facts(step_time="linear"), step_time="linear").summary()
    assert (summary.mfu, summary.mbu, summary.step_time) == (None, None, "linear")


def test_prefix_hits_and_preemptions_follow_the_window() -> None:
    raw = fifo([Ask(0, 5, prompt=100), Ask(S, 5, prompt=300), Ask(2 * S, 5, prompt=50, reject=1)])
    raw["requests"]["cached_tokens"] = np.array([0, 150, 0], np.uint32)
    raw["requests"]["preemptions"] = np.array([3, 0, 0], np.uint32)
    raw["timeline"]["preemptions"][:] = 3
    raw["totals"] |= {"prefix_lookup_tokens": 400, "prefix_hit_tokens": 150}
    result = Result(raw, facts())
    whole, late = result.summary(), result.summary(start=0.5)
    assert (whole.prefix_hit_rate, late.prefix_hit_rate) == (150 / 400, 0.5)
    assert (whole.preemptions, whole.preempted_requests, late.preemptions) == (3, 1, 0)


def test_summary_is_a_read_only_mapping() -> None:
    summary = run(PAIR).summary()
    assert list(summary) == list(METRICS)
    assert summary["mean_ttft_s"] == summary.mean_ttft_s
    assert {"mean_ttft_s", "p50_ttft_s", "to_dict"} <= set(dir(summary))
    with pytest.raises(KeyError, match="no metric 'mean_tfft_s'; did you mean 'mean_ttft_s'"):
        summary["mean_tfft_s"]
    with pytest.raises(AttributeError, match="did you mean 'mean_ttft_s'"):
        _ = summary.mean_ttft
    with pytest.raises(AttributeError, match="cannot be changed"):
        summary.mfu = 1.0
    assert pickle.loads(pickle.dumps(summary)) == copy.deepcopy(summary) == summary
    with pytest.raises(ValueError, match="these differ: mfu"):
        Summary({name: None for name in METRICS if name != "mfu"})


def test_to_dict_is_json() -> None:
    plain = run(PAIR, facts(warnings=("profile is old",))).summary().to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert plain["warnings"][0] == "profile is old"
    assert plain["step_time"] == "roofline"
    assert sum(plain["ttft_attribution_s"].values()) == pytest.approx(plain["mean_ttft_s"])


def test_every_metric_is_in_the_table_of_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text("utf-8")
    rows = [line.split("|") for line in text.splitlines() if line.startswith("| `") and line.count("|") == 5]
    documented = {name.strip(" `"): row[2].strip() for row in rows for name in row[1].split(",")}
    assert documented == {metric.name: metric.unit for metric in METRICS.values()}
    assert all(row[3].strip() and row[4].strip() for row in rows)
