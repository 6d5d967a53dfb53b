"""Prefill and decode apart, beside measured runs: the errors of today, loosely (`docs/validation-pdd.md`)."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

import frontier
from frontier import validation
from frontier.validation import Case, LeftOut
from frontier.validation.suites import h200_e2e, pdd_h200, silicon_disagg
from frontier.validation.suites.prefill_decode import little_tok_s, mean_latencies_ms, request_times_ms
from frontier.validation.suites.reading import rows_of

DATA = Path(__file__).parent / "measured"
UPSTREAM_FIT = {"mode": "buffer", "latency": "0.664ms", "bandwidth": "263.5GB/s"}
"""The transfer constants that NetX-lab/Frontier fitted to c3."""


def made(name: str, scratch: Path) -> tuple[list[Case], list[LeftOut]]:
    of_all = list(validation.suite(name).cases(DATA, scratch))
    return (
        [one for one in of_all if isinstance(one, Case)],
        [one for one in of_all if isinstance(one, LeftOut)],
    )


def simulated(name: str, cases: Iterable[Case]) -> validation.Report:
    fewer = replace(validation.suite(name), cases=lambda _data, _scratch: cases)
    return validation.evaluate(fewer, DATA, threads=2)


def by_request(scenario: Any, table: str) -> tuple[h200_e2e.ByRequest, h200_e2e.ByRequest]:
    """Return measured and simulated latencies of all requests of a table."""
    apart = table == h200_e2e.C3
    ours = h200_e2e.simulated_ms(frontier.simulate(scenario), apart=apart)
    return h200_e2e.measured_ms(rows_of(DATA / table), apart=apart), ours


def with_upstreams_transfer(case: Case) -> dict[str, Any]:
    """Return a scenario of c3 whose KV is transferred by upstream's constants, not by the data sheet's."""
    scenario = {name: section for name, section in case.scenario.items() if name != "network"}
    return {**scenario, "disaggregation": {"kv_transfer": UPSTREAM_FIT}}


def values(row: dict[str, Any]) -> tuple[float, float]:
    return row["measured"], row["simulated"]


def test_llama_1p1d(tmp_path: Path) -> None:
    cases, left = made("h200-e2e", tmp_path)
    assert not left
    points = simulated("h200-e2e", cases).to_dict()["points"]
    alone, apart = (
        {row["metric"]: row["error"] for row in points if row["group"] == case.group} for case in cases
    )
    # TTFT, TPOT and E2E at five statistics each; the gap, likewise; and throughput.
    assert (len(alone), len(apart)) == (16, 21)
    assert abs(apart["tpot_mean_ms"]) < 0.12
    assert abs(apart["e2e_mean_ms"]) < 0.11
    assert -0.20 < apart["ttft_mean_ms"] < 0.0
    assert abs(apart["gap_mean_ms"]) < 0.15
    # What is wrong with decoding is wrong on one GPU too: prefill and decode apart add nothing to it.
    assert abs(apart["tpot_mean_ms"] - alone["tpot_mean_ms"]) < 0.02
    assert abs(apart["output_tok_s_gpu"]) < 0.01


def test_llama_1p1d_request_by_request(tmp_path: Path) -> None:
    cases, _ = made("h200-e2e", tmp_path)
    theirs, ours = by_request(cases[1].scenario, h200_e2e.C3)
    for name in ("tpot", "e2e"):
        assert np.corrcoef(ours[name], theirs[name])[0, 1] > 0.97
    # The metrics of the suite are over these.
    assert cases[1].measured["gap_p90_ms"] == pytest.approx(np.percentile(theirs["gap"], 90))
    assert cases[1].measured["output_tok_s_gpu"] == pytest.approx(100 * 256 / 50 / 2, rel=0.2)


def test_transfer_constants_of_others_explain_the_gap(tmp_path: Path) -> None:
    """One decode step, half of another to wait for, and a transfer lie between the prompt and the token."""
    cases, _ = made("h200-e2e", tmp_path)
    theirs, ours = by_request(with_upstreams_transfer(cases[1]), h200_e2e.C3)
    assert ours["gap"].mean() == pytest.approx(theirs["gap"].mean(), rel=0.05)
    transfer_ms = 0.664 + 2048 * 32 * 2 * 4096 * 2 / 263.5e9 * 1e3
    steps: NDArray[np.float64] = (ours["gap"] - transfer_ms) / ours["tpot"]
    assert 0.9 < steps.min() < steps.max() < 2.2
    assert steps.mean() == pytest.approx(1.5, abs=0.1)


def test_deepseek_on_h200(tmp_path: Path) -> None:
    cases, _ = made("silicon-disagg", tmp_path)
    mine = [case for case in cases if case.group == "h200 trtllm"]
    assert len(mine) == 9
    found = simulated("silicon-disagg", mine).groups.row(
        by_predicate=pl.col("metric") == "tpot_mean_ms", named=True
    )
    assert found["median"] < 0.08
    assert found["spearman"] > 0.9


def test_the_first_token_of_a_stand_in_is_that_of_the_prefill_side(tmp_path: Path) -> None:
    """Of TensorRT-LLM TTFT ends with the transfer, and throughput is that of a closed loop on both sides."""
    cases, _ = made("silicon-disagg", tmp_path)
    case = min(
        (case for case in cases if case.group == "h200 trtllm"), key=lambda case: float(case.facts["clients"])
    )
    result = frontier.simulate(case.scenario)
    read = case.read(result)
    times = request_times_ms(result)
    assert read["ttft_mean_ms"] == pytest.approx(times["end"].mean())
    assert mean_latencies_ms(result, "decode")["ttft_mean_ms"] > read["ttft_mean_ms"]
    output = result.columns.requests["output_tokens"]
    clients, gpus = int(case.facts["clients"]), int(case.facts["gpus"])
    loop = little_tok_s(clients, output.mean(), read["ttft_mean_ms"], read["tpot_mean_ms"]) / gpus
    assert read["output_tok_s_gpu"] == pytest.approx(loop, rel=0.02)
    # The loop is not full at its end, so it gives somewhat less.
    assert 0.8 < result.summary().output_throughput / gpus / loop < 1.05


def test_ratios_of_workers_with_long_prompts(tmp_path: Path) -> None:
    """gpt-oss with prompts of 32,784 tokens: the best of four ratios is the measured one under every load."""
    cases, _ = made("pdd-h200", tmp_path)
    report = simulated("pdd-h200", (case for case in cases if case.group == pdd_h200.LONG))
    rows = report.to_dict()["points"]
    loads: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["metric"] == "output_tok_s_gpu":
            loads.setdefault(row["choice"], []).append(values(row))
    assert [len(same) for same in loads.values()] == [4, 4, 4]
    for same in loads.values():
        measured, ours = np.array(same).T
        assert np.argmax(measured) == np.argmax(ours)
    tpot = [abs(row["error"]) for row in rows if row["metric"] == "tpot_mean_ms"]
    assert np.median(tpot) < 0.15
    throughput = report.groups.row(by_predicate=pl.col("metric") == "output_tok_s_gpu", named=True)
    assert throughput["pairs"] == 18
    assert throughput["ordered"] > 0.85


def test_every_row_is_simulated_or_left_out_with_a_reason(tmp_path: Path) -> None:
    cases, left = made("pdd-h200", tmp_path)
    # 44 of the 56 runs are simulated twice, as their prompts may have been in the cache.
    assert len(left) == 1
    assert len(cases) == 12 + 2 * 44
    cases, left = made("silicon-disagg", tmp_path)
    apart = [case for case in cases if not case.group.startswith(silicon_disagg.CONTROL)]
    assert len(apart) + len(left) == 133
    assert len(left) == 85
    assert all(one.reason for one in left)
    control = [case for case in cases if case not in apart]
    assert len(control) == 28
    # Two deployments were measured twice; neither is an alternative to itself.
    assert sum(not case.choice for case in control) == 2
    assert len({(case.group, case.choice) for case in control if case.choice}) == 26
    assert len({(case.group, case.name) for case in cases}) == len(cases)


@pytest.mark.parametrize(("mean", "limit"), [(62.18, 128), (697.0, 2048), (11955.0, 32784)])
def test_output_lengths_have_the_published_mean(mean: float, limit: int) -> None:
    workload: dict[str, Any] = {
        "synthetic": {
            "arrivals": {"closed_loop": {"concurrency": 8}},
            "num_requests": 4000,
            "prompt_tokens": 16,
            "output_tokens": pdd_h200.two_kinds(mean, limit),
        }
    }
    engine = {"step_time": {"linear": {"per_step": "1ms"}}}
    scenario = {"model": "llama-3.1-8b", "hardware": "h100", "engine": engine, "workload": workload}
    drawn = frontier.simulate(frontier.Scenario.from_dict(scenario)).columns.requests["output_tokens"]
    assert drawn.mean() == pytest.approx(mean, rel=0.05)
    assert drawn.max() <= limit
