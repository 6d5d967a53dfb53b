"""Prediction intervals of real runs: what is drawn, what stays, and when a result is no longer the same."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import fake_packs
import numpy as np
import pytest

import frontier
from frontier.errors import ConfigError, FrontierError
from frontier.results import Result
from frontier.simulation import simulate_with_residuals

NO_LAUNCHES = {"per_kernel_launch": "0s", "per_graph_launch": "0s", "per_graph_kernel": "0s"}
"""A step of this small model would wait for its launches, not for its operators."""


def scenario(pack: Path, **synthetic: Any) -> dict[str, Any]:
    return {
        "model": "qwen3-0.6b",
        "hardware": "h100",
        "engine": {
            "max_model_len": 4096,
            "cpu_overhead": NO_LAUNCHES,
            "step_time": {"learned": {"packs": [str(pack)]}},
        },
        "workload": {
            "synthetic": {
                "arrivals": {"poisson": {"rate": "20/s"}},
                "num_requests": 60,
                "prompt_tokens": {"uniform": {"min": 50, "max": 500}},
                "output_tokens": 20,
                **synthetic,
            }
        },
    }


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    return fake_packs.write(tmp_path / "h100.safetensors", fake_packs.dense_model())


def test_intervals_do_not_depend_on_threads(pack: Path) -> None:
    result = frontier.simulate(scenario(pack))
    one, two = (result.interval("ttft_p99", replications=19, threads=threads) for threads in (1, 2))
    assert one == two
    assert len(set(one.values)) == 19
    assert one.low < one.estimate < one.high
    assert one.unmeasured_share == result.trust.shares["unmeasured"] == 0.0


def test_errors_change_times_and_nothing_else(pack: Path) -> None:
    plain = scenario(pack)
    best, runs = simulate_with_residuals(plain, 3, threads=2, reduce=lambda run: run)
    assert best.digest == frontier.simulate(plain).digest
    assert len({run.digest for run in [best, *runs]}) == 4
    for run in runs:
        for column in ("arrival_ns", "prompt_tokens", "output_tokens"):
            assert np.array_equal(run.columns.requests[column], best.columns.requests[column])


def test_one_operators_error_is_drawn_from_its_residuals(tmp_path: Path) -> None:
    """Where one operator alone has a predictor, and all else is known, its draws are the run's."""
    quantiles = [[0.01, math.log(2.0)], [0.99, math.log(2.0)]]
    fake = fake_packs.tree("gemm", 1.0, residual_quantiles=quantiles)
    plain = scenario(fake_packs.write(tmp_path / "p", [fake]))
    plain["engine"]["cpu_overhead"] = {**NO_LAUNCHES, "per_step": "0s", "per_seq": "0s"}

    def gemm_s(run: Result) -> float:
        return sum(each.interpolated_s for each in run.trust.operators)

    best, runs = simulate_with_residuals(
        {**plain, "engine": {**plain["engine"], "max_num_seqs": 1}}, 2, threads=1, reduce=gemm_s
    )
    assert gemm_s(best) > 0
    assert runs == [pytest.approx(2.0 * gemm_s(best))] * 2


def test_a_loaded_result_has_the_same_interval(pack: Path, tmp_path: Path) -> None:
    result = frontier.simulate(scenario(pack))
    again = Result.load(result.save(tmp_path / "run"))
    assert again.facts.predictors == result.facts.predictors != ()
    assert again.interval("output_throughput", replications=19) == result.interval(
        "output_throughput", replications=19
    )


def test_other_predictors_than_the_results_are_refused(pack: Path) -> None:
    result = frontier.simulate(scenario(pack))
    fake_packs.write(pack, fake_packs.dense_model(residual_quantiles=[[0.5, 0.3]]))
    os.utime(pack, ns=(1, 1))
    with pytest.raises(FrontierError, match=r"made with other predictors .*h100/vllm-0\.24\.0/fake_gemm"):
        result.interval("ttft_p99", replications=19)


def test_what_a_run_rests_on_is_counted(tmp_path: Path) -> None:
    spec = frontier.load_model("qwen3-0.6b")
    fakes = [
        fake_packs.tree("gemm", 1.5, measured_shapes=[(spec.hidden_size, spec.vocab_size)]),
        fake_packs.tree("prefill_attention", 1.5, most=10.0),
        fake_packs.tree("decode_attention", 1.5),
    ]
    result = frontier.simulate(scenario(fake_packs.write(tmp_path / "p", fakes)))
    by_name = {each.operator: each for each in result.trust.operators}
    assert by_name["lm_head"].measured_s == by_name["lm_head"].total_s > 0
    assert by_name["qkv_proj"].interpolated_s == by_name["qkv_proj"].total_s > 0
    assert by_name["attention (prefill)"].extrapolated_s == by_name["attention (prefill)"].total_s > 0
    assert by_name["rotary_embedding"].unmeasured_s == by_name["rotary_embedding"].total_s > 0
    excursion = by_name["attention (prefill)"]
    assert (excursion.feature, excursion.low, excursion.high) == ("query_tokens", 1.0, 10.0)
    assert excursion.distance == pytest.approx(excursion.value / 10.0)
    assert result.step_time == "learned"
    assert result.facts.predictors[0]["id"].startswith("h100/vllm-0.24.0/fake_gemm/")
    assert sum(result.trust.shares.values()) == pytest.approx(1.0)
    # One replica of one GPU, whose host works meanwhile; each step is rounded to a nanosecond.
    busy_s = result.columns.timeline["busy_ns"][-1] / 1e9
    assert result.trust.total_s == pytest.approx(busy_s, abs=1e-9 * result.totals["num_steps"])


def test_bad_replications_are_refused(pack: Path) -> None:
    with pytest.raises(ConfigError, match="replications: was 0, must be a whole number of at least 1"):
        simulate_with_residuals(scenario(pack), 0, reduce=lambda run: run)
    roofline = {**scenario(pack), "engine": {"step_time": "roofline"}}
    with pytest.raises(ConfigError, match=r"engine\.step_time: was roofline, has no predictors"):
        simulate_with_residuals(roofline, 1, reduce=lambda run: run)


def test_a_failing_replication_is_named(pack: Path) -> None:
    def refuse(run: Result) -> float:
        raise ValueError("enough")

    with pytest.raises(ValueError, match="enough"):
        simulate_with_residuals(scenario(pack), 5, reduce=refuse)
