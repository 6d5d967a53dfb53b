"""Suites of measured runs: how cases are made, exactly, and how far off they are today, loosely."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import frontier
from frontier import validation
from frontier.config import Scenario
from frontier.validation import Case, LeftOut, Report
from frontier.validation.statistics import Errors, errors_of
from frontier.validation.suites import static_batch, trtllm_throughput, wide_ep
from frontier.validation.suites.prompts import Request, around, write_trace

CARRIED = Path(__file__).parent / "measured"


@pytest.fixture
def elsewhere(shared: Path) -> Path:
    """Folder of the sets that may not be carried here."""
    return shared / "data" / "measured"


def made(name: str, scratch: Path, data: Path = CARRIED) -> tuple[list[Case], list[LeftOut]]:
    of_all = list(validation.suite(name).cases(data, scratch))
    return [one for one in of_all if isinstance(one, Case)], [
        one for one in of_all if isinstance(one, LeftOut)
    ]


def some(name: str, *wanted: str, data: Path = CARRIED) -> Report:
    """Simulate the cases of a suite with these in their groups and names."""
    suite = validation.suite(name)
    fewer = replace(
        suite,
        cases=lambda folder, scratch: (
            one
            for one in suite.cases(folder, scratch)
            if isinstance(one, Case) and any(part in f"{one.group}: {one.name}" for part in wanted)
        ),
    )
    return validation.evaluate(fewer, data, threads=2)


def errors(report: Report, metric: str, group: str = "all") -> Errors:
    points = [
        row
        for row in report.to_dict()["points"]
        if row["metric"] == metric and group in ("all", row["group"])
    ]
    assert points
    return errors_of(
        [row["measured"] for row in points],
        [row["simulated"] for row in points],
        [row["choice"] for row in points],
    )


def of(report: Report, metric: str) -> dict[str, float]:
    return {row["case"]: row["simulated"] for row in report.to_dict()["points"] if row["metric"] == metric}


# Common


def test_lengths_around_a_mean() -> None:
    assert around(591.63, 44) == [592] * 28 + [591] * 16
    assert around(16.0, 3) == [16] * 3


def test_traces_share_what_their_content_says(tmp_path: Path) -> None:
    requests = [Request(0.0, 40, 4, [1, 2]), Request(1.0, 40, 4, [1, 3]), Request(2.0, 40, 4, [1, 3])]
    result = frontier.simulate(
        {
            "model": "llama-3.1-8b",
            "hardware": "h100",
            "engine": {"block_size": 16},
            "workload": {"trace": write_trace(tmp_path / "trace.csv", requests)},
        }
    )
    assert result.requests["cached_tokens"].to_list() == [0, 16, 32]


# static-batch


def test_static_batch_cases(tmp_path: Path) -> None:
    cases, left = made("static-batch", tmp_path)
    reasons = Counter(one.reason for one in left)
    assert len(cases) == 85
    assert reasons == {static_batch.CAPPED: 76, static_batch.UNKNOWN: 38, static_batch.STOPPED: 29}
    assert len({(case.group, case.name) for case in cases}) == 85
    for case in cases:
        # What is left agrees with its own parts.
        output = case.scenario["workload"]["synthetic"]["output_tokens"]
        parts = case.measured["ttft_mean_ms"] + case.measured["tpot_mean_ms"] * (output - 1)
        assert case.measured["e2e_mean_ms"] == pytest.approx(parts, rel=0.03)


def test_static_batch_is_one_batch(tmp_path: Path) -> None:
    """All requests have their first token after one step, and each step gives one to all of them."""
    cases, _ = made("static-batch", tmp_path)
    case = next(each for each in cases if each.group.endswith("H100-80GB") and each.name.endswith("batch 64"))
    result = frontier.simulate(case.scenario)
    requests = result.requests
    assert len(requests) == 64
    assert requests["first_token_ns"].n_unique() == requests["finished_ns"].n_unique() == 1
    steps = (requests["finished_ns"] - requests["first_token_ns"])[0] / 127
    assert case.read(result)["tpot_mean_ms"] == pytest.approx(steps / 1e6)


def test_static_batch_errors() -> None:
    report = some("static-batch", "llama2-70b")
    assert errors(report, "tpot_mean_ms").mean < 0.30
    assert errors(report, "ttft_mean_ms").mean < 0.40
    assert errors(report, "e2e_mean_ms").mean < 0.30
    assert (errors(report, "e2e_mean_ms").spearman or 0) > 0.85
    assert (errors(report, "ttft_mean_ms").ordered or 0) > 0.9


# trtllm-throughput


def test_trtllm_cases(tmp_path: Path) -> None:
    cases, left = made("trtllm-throughput", tmp_path)
    reasons = Counter(one.reason for one in left)
    assert len(cases) + len(left) == 914
    assert reasons[trtllm_throughput.STATIC] == 126
    assert reasons[trtllm_throughput.PIPELINE] == 56
    assert len(cases) == 628
    assert all(
        "Llama-4" in reason
        for reason in set(reasons) - {trtllm_throughput.STATIC, trtllm_throughput.PIPELINE}
    )


def test_trtllm_kv_cache_is_a_share_of_what_is_free() -> None:
    """TensorRT-LLM takes its share of the free memory, not a share of all less what is used."""
    row = {
        "model": "Llama-3-70B", "gpu": "H100-SXM-80GB", "precision": "fp8", "engine_version": "v0.14.0",
        "parallelism": "TP1", "tp": "1", "isl": "1000", "osl": "1000", "n_requests": "3000",
    }  # fmt: skip
    scenario = trtllm_throughput.scenario_of(row)
    blocks = trtllm_throughput.kv_blocks(scenario)
    scenario["engine"]["gpu_memory_utilization"] = 1.0
    memory = Scenario.from_dict(scenario).resolve().memory
    assert blocks * memory.bytes_per_block <= 0.9 * memory.available_bytes
    assert (blocks + 2) * memory.bytes_per_block > 0.9 * memory.available_bytes
    # 80 layers, 8 heads of 128 for keys and values in 8 bits, 64 tokens.
    assert memory.bytes_per_block == 80 * 2 * 8 * 128 * 64
    # Room for fewer than 20 requests at once.
    assert 15 < blocks * 64 / 2000 < 20


def test_trtllm_llama_70b_is_starved_of_kv_on_one_h100() -> None:
    """464 tokens per second on one H100, 2,594 on one H200, 4,092 on two H100."""
    report = some("trtllm-throughput", "Llama-3-70B fp8 TP1 1000/1000", "Llama-3-70B fp8 TP2 1000/1000")
    points = {
        (row["group"], row["case"]): row for row in report.to_dict()["points"] if "v0.14" in row["group"]
    }
    starved = points["v0.14.0 H100-SXM-80GB", "Llama-3-70B fp8 TP1 1000/1000"]
    one = points["v0.14.0 H200-SXM-141GB", "Llama-3-70B fp8 TP1 1000/1000"]
    two = points["v0.14.0 H100-SXM-80GB", "Llama-3-70B fp8 TP2 1000/1000"]
    assert starved["measured"] == pytest.approx(464.5, abs=0.1)
    assert abs(starved["error"]) < 0.10
    assert abs(one["error"]) < 0.25
    assert abs(two["error"]) < 0.25
    assert starved["simulated"] < one["simulated"] / 4 < two["simulated"] / 4
    # For the right reason: hardly any room for KV.
    assert starved["kv_tokens"] * 10 < one["kv_tokens"]


def test_trtllm_a100_errors() -> None:
    report = some("trtllm-throughput", "A100-SXM-80GB: Llama-3.1-8B", "A100-SXM-80GB: Llama-3-70B fp16 TP4")
    found = errors(report, "output_tok_s")
    assert found.median < 0.15
    assert (found.spearman or 0) > 0.9


# inferencex-slo


def test_inferencex_cases(tmp_path: Path) -> None:
    cases, left = made("inferencex-slo", tmp_path)
    assert len(cases) == 124
    assert Counter(one.group for one in left) == {"Qwen/Qwen3.5-397B-A17B tp8": 45}
    assert Counter(case.group.split(" ")[1] for case in cases) == {"tp8": 52, "tep8": 65, "dep8": 7}
    for case in cases:
        assert case.scenario["engine"]["enable_prefix_caching"]
        loop = case.scenario["workload"]["trace"]["arrivals"]["closed_loop"]
        assert loop["concurrency"] == case.facts["clients"]


def test_inferencex_run_finds_what_earlier_runs_left(tmp_path: Path) -> None:
    """The first 40 prompts of a run with 8 clients are those of the run with 4 before it."""
    cases, _ = made("inferencex-slo", tmp_path)
    case = next(each for each in cases if each.group.endswith("tep8") and each.name == "32768/128 8 clients")
    requests = frontier.simulate(case.scenario).requests
    run = requests.tail(80)
    assert run["prompt_tokens"].unique().to_list() == [32768]
    assert run["generated_tokens"].unique().to_list() == [128]
    cached = run["cached_tokens"].to_numpy()
    assert (cached[:40] >= 32768 - 16).all()
    # The others are new: no longer run before it has left so many.
    assert cached[40:].max() < 32768 - 16
    # All clients begin at once.
    assert np.ptp(run["arrival_ns"].to_numpy()[:8]) < 50e6


def test_inferencex_warm_up_is_not_measured(tmp_path: Path) -> None:
    cases, _ = made("inferencex-slo", tmp_path)
    case = next(each for each in cases if each.group.endswith("dep8") and each.name == "1024/128 4 clients")
    result = frontier.simulate(case.scenario)
    mine = result.requests.tail(40)
    read = case.read(result)
    assert read["ttft_median_ms"] == pytest.approx(np.median(mine["ttft_s"].to_numpy()) * 1e3)
    assert len(result.requests) == 40 + 2 * 4


def test_inferencex_errors() -> None:
    report = some("inferencex-slo", "GLM-5-FP8 tp8: 1024/", "GLM-5-FP8 tp8: 4096/", "dep8: 1024/")
    found = errors(report, "tpot_median_ms")
    assert found.median < 0.55
    assert (found.spearman or 0) > 0.8
    assert (errors(report, "output_tok_s").ordered or 0) > 0.85


# open-loop-h100


def test_open_loop_cases(tmp_path: Path, elsewhere: Path) -> None:
    cases, left = made("open-loop-h100", tmp_path, elsewhere)
    assert not left
    assert Counter(case.group for case in cases) == {"steady": 20, "overloaded": 4}
    for case in cases:
        assert case.scenario["engine"]["max_num_seqs"] == 128
        assert case.scenario["engine"]["enable_prefix_caching"]
        assert ("admission" in case.scenario) == (case.group == "overloaded")


def test_open_loop_prompts_come_again(tmp_path: Path, elsewhere: Path) -> None:
    """All but the first round of the prompts are in the cache, but for their last blocks."""
    cases, _ = made("open-loop-h100", tmp_path, elsewhere)
    case = next(each for each in cases if each.name == "llama-2-7b TP1 codegen at 5 req/s")
    requests = frontier.simulate(case.scenario).requests
    assert len(requests) == 3000
    assert requests["prompt_tokens"].mean() == pytest.approx(591.63, abs=0.03)
    assert requests["output_tokens"].unique().to_list() == [247]
    computed = (requests["prompt_tokens"] - requests["cached_tokens"]).to_numpy()
    assert (computed[44:] <= 16).all()
    # Of the first round every system prompt is new once, and found by the three other users.
    assert (computed[:11] > 590).all()
    assert (computed[11:44] == requests["prompt_tokens"].to_numpy()[11:44] - 96).all()
    arrivals = requests["arrival_s"].to_numpy()
    gaps = np.diff(arrivals)
    assert arrivals.max() <= 600
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.06)


def test_open_loop_time_per_token_is_not_that_per_line(tmp_path: Path, elsewhere: Path) -> None:
    cases, _ = made("open-loop-h100", tmp_path, elsewhere)
    for case in cases:
        measured = case.measured
        rows = Path(case.scenario["workload"]["trace"]["path"]).read_text("utf-8").splitlines()
        output = int(rows[-1].split(",")[3])
        decode = measured["e2e_mean_ms"] - measured["ttft_mean_ms"]
        assert measured["tpot_mean_ms"] == pytest.approx(decode / (output - 1), rel=0.002)


def test_open_loop_errors(elsewhere: Path) -> None:
    report = some(
        "open-loop-h100", "steady: llama-2-70b", "steady: codellama", "steady: mixtral", data=elsewhere
    )
    assert errors(report, "e2e_mean_ms").mean < 0.13
    assert errors(report, "tpot_mean_ms").mean < 0.13
    assert errors(report, "ttft_mean_ms").mean < 0.20
    assert (errors(report, "tpot_mean_ms").ordered or 0) > 0.85


# gptoss-h200


def test_gptoss_cases(tmp_path: Path, elsewhere: Path) -> None:
    cases, left = made("gptoss-h200", tmp_path, elsewhere)
    assert not left
    assert len(cases) == 21
    assert sum(int(case.facts["repeats"]) for case in cases) == 64
    spreads = [float(case.facts["spread_output_tok_s"]) for case in cases if case.facts["repeats"] != 1]
    assert len(spreads) == 12
    assert max(spreads) < 0.035
    case = next(each for each in cases if each.facts["requests"] == 3840)
    requests = frontier.simulate(case.scenario).requests
    assert requests["prompt_tokens"].mean() == pytest.approx(7192.3, rel=0.005)
    assert requests["output_tokens"].mean() == pytest.approx(900.5, rel=0.005)
    assert requests["prompt_tokens"].max() <= 8192
    assert requests["cached_tokens"].max() == 0


def test_gptoss_errors(elsewhere: Path) -> None:
    report = some(
        "gptoss-h200",
        *(f": {clients} clients, {10 * clients} " for clients in (1, 2, 4, 8, 16, 32)),
        data=elsewhere,
    )
    assert errors(report, "output_tok_s").largest < 0.06
    assert errors(report, "e2e_mean_ms").largest < 0.06
    assert errors(report, "tpot_mean_ms").median < 0.05
    assert errors(report, "ttft_mean_ms").mean < 0.55
    assert errors(report, "output_tok_s").ordered == 1.0


# afd-papers


def test_afd_papers_reproduces_what_the_documentation_says() -> None:
    report = validation.evaluate(validation.suite("afd-papers"))
    whole = {name: errors(report, "output_tok_s_gpu", name) for name in ("EP16, bounds", "EP16, learned")}
    assert {name: each.cases for name, each in whole.items()} == dict.fromkeys(whole, 3)
    assert whole["EP16, bounds"].mean < 0.07
    assert 0.2 < whole["EP16, learned"].mean < 0.4  # a miss, of kernels that are not Step-3's
    layers = errors(report, "attention_layer_us", "attention layer, bounds")
    assert (layers.cases, layers.pairs) == (16, 51)
    assert layers.median < 0.1
    assert layers.ordered is not None
    assert layers.ordered > 0.8
    points = {(row["group"], row["case"]): row for row in report.to_dict()["points"]}
    two = points["EP16, bounds", "2A2F"]
    # 6,144 tokens of a step on 16 + 16 GPUs.
    assert two["simulated"] == pytest.approx(6144 / (two["step_ms"] / 1e3) / 32)
    # The report sends back 2 x 128 tokens in 182 us; here each FFN rank that has experts of a token has it.
    assert two["f2a_us"] == pytest.approx(182 * 2.7 / 2, rel=0.02)
    assert [one.name for one in report.left_out] == [
        f"{layout}, {context}" for context in ("16K", "32K") for layout in ("EP64", "48A16F", "64A16F")
    ]


# wide-ep


def test_wide_ep_errors() -> None:
    report = validation.evaluate(validation.suite("wide-ep"))
    assert errors(report, "output_tok_s_gpu").cases == 5
    assert errors(report, "output_tok_s_gpu").mean < 0.15
    assert errors(report, "input_tok_s_gpu", "SGLang prefill").mean < 0.25  # a miss
    for metric in ("input_tok_s_gpu", "output_tok_s_gpu"):
        assert errors(report, metric, "DeepSeek profile").largest < 0.05
    points = {row["case"]: row for row in report.to_dict()["points"]}
    two, one = points["EP72, 4K, 128 per GPU"], points["EP72, 4K, 128 per GPU, one batch"]
    assert two["one_batch_tok_s_gpu"] == pytest.approx(one["simulated"])
    assert two["simulated"] / one["simulated"] == pytest.approx(17_373 / 12_929, rel=0.05)
    assert one["simulated"] == pytest.approx(128 / (one["step_ms"] / 1e3))
    reasons = Counter(each.reason for each in report.left_out)
    assert reasons == {wide_ep.NO_BATCH: 3, wide_ep.NO_SPLIT: 2}


def test_wide_ep_copies_of_experts_do_not_level_any_skew() -> None:
    (uniform,) = (each for each in wide_ep.DEPLOYMENTS if each.ranks == 144)
    skewed = replace(uniform, routing={"power_law": {"exponent": 1.0}})
    assert wide_ep.step(skewed)["total_ns"] > 1.1 * wide_ep.step(uniform)["total_ns"]
