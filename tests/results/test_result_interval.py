"""Prediction intervals: names of metrics, ends, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fifo import MS, Ask, facts, fifo, run

from frontier import simulation
from frontier.errors import ConfigError, FrontierError
from frontier.results import METRICS, Result
from frontier.results.interval import least_replications, metric_name

USED = ({"id": "h100/vllm-0.24.0/fa3", "sha256": "ab"},)


def queue(prefill_ns: int = 100 * MS, digest: str = "00", **changes: Any) -> Result:
    raw = fifo([Ask(0, 5)], prefill_ns=prefill_ns, step_time="learned")
    raw["totals"]["digest"] = digest
    seconds = {"measured_s": 0.75, "interpolated_s": 0.0, "extrapolated_s": 0.0, "unmeasured_s": 0.25}
    nothing = dict.fromkeys(("feature", "value", "low", "high", "distance"))
    raw["clusters"][0]["trust"] = [{"operator": "o_proj", **seconds, **nothing}]
    return Result(raw, facts(step_time="learned", predictors=USED, **changes))


@pytest.fixture
def rerun(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the replications of a result be queues whose prefills take 1 ms, 2 ms, ..., in some order."""

    def install(again: Result, prefills_ms: list[int]) -> None:
        def fake(scenario: Any, replications: int, *, threads: Any, reduce: Any) -> Any:
            assert scenario == {"name": "x"}
            assert threads == 3
            return again, [reduce(queue(ms * MS)) for ms in prefills_ms[:replications]]

        monkeypatch.setattr(simulation, "simulate_with_residuals", fake)

    return install


def test_ends_are_order_statistics_of_the_replications(rerun: Callable[..., None]) -> None:
    result = queue(scenario={"name": "x"})
    rerun(result, [int(ms) for ms in np.random.default_rng(0).permutation(np.arange(1, 20))])
    found = result.interval("ttft_p99", replications=19, threads=3)
    # Of 19 values, the least and the largest leave out 1/20 on each side.
    assert (found.low, found.high) == (pytest.approx(0.001), pytest.approx(0.019))
    assert (found.metric, found.level, found.replications) == ("p99_ttft_s", 0.9, 19)
    assert found.estimate == pytest.approx(0.1)
    assert found.unmeasured_share == 0.25
    assert sorted(found.values) == pytest.approx([ms / 1000 for ms in range(1, 20)])
    assert "90% between 1.000 ms and 19.00 ms (19 replications" in str(found)
    assert "25% of GPU time is unmeasured: pooled predictors by their leave-one-GPU-out" in str(found)
    assert "bounds assumed up to three times too short" in str(found)
    assert "not covered" not in str(found)
    assert found.to_dict()["values"] == list(found.values)
    narrow = result.interval("ttft_p99", level=0.5, replications=19, threads=3)
    assert (narrow.low, narrow.high) == (pytest.approx(0.005), pytest.approx(0.015))


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95, 0.99])
def test_a_new_replication_falls_inside_with_probability_level(level: float) -> None:
    count = least_replications(level)
    draws = np.random.default_rng(1).random((20_000, count + 1))
    tail = (1 - level) / 2
    low, high = np.quantile(draws[:, :-1], [tail, 1 - tail], axis=1, method="weibull")
    inside = ((low <= draws[:, -1]) & (draws[:, -1] <= high)).mean()
    assert inside == pytest.approx(level, abs=0.012)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("p99_ttft_s", "p99_ttft_s"),
        ("ttft_p99", "p99_ttft_s"),
        ("p99_ttft", "p99_ttft_s"),
        ("ttft_p99_s", "p99_ttft_s"),
        ("p50_tpot_s", "median_tpot_s"),
        ("itl_p50", "median_itl_s"),
        ("e2e_mean", "mean_e2el_s"),
        ("output_throughput", "output_throughput"),
        ("duration", "duration"),
    ],
)
def test_metrics_have_several_names(name: str, meant: str) -> None:
    assert metric_name(name) == meant
    assert meant in METRICS


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"metric": "ttft_p98"},
            "metric: was 'ttft_p98', must be a metric of the summary; did you mean 'ttft_p9",
        ),
        ({"metric": None}, "metric: was None, must be a metric"),
        ({"metric": ["mfu"]}, r"metric: was \['mfu'\], must be a metric"),
        ({"metric": "warnings"}, "metric: was 'warnings', which is no single figure"),
        ({"level": 1.0}, "level: was 1.0, must be a share between 0 and 1"),
        ({"level": "90%"}, "level: was '90%'"),
        ({"replications": 18}, "replications: was 18, must be at least 19 for a level of 0.9"),
        ({"level": 0.99}, "replications: was 32, must be at least 199"),
        ({"replications": 32.0}, "replications: was 32.0, must be a whole number"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        queue().interval(**{"metric": "ttft_p99", **arguments})


@pytest.mark.parametrize(("step_time", "reason"), [("linear", "a formula"), ("roofline", "a bound")])
def test_step_times_without_predictors_have_no_interval(step_time: str, reason: str) -> None:
    result = run([Ask(0, 5)], facts(step_time=step_time), step_time=step_time)
    with pytest.raises(ConfigError, match=f"engine.step_time: was {step_time}, {reason}"):
        result.interval("ttft_p99")


def test_another_run_than_the_results_is_refused(rerun: Callable[..., None]) -> None:
    result = queue(scenario={"name": "x"})
    rerun(queue(digest="01"), [1] * 19)
    with pytest.raises(FrontierError, match="gives digest 01, not 00: its trace, a preset or frontier"):
        result.interval("ttft_p99", replications=19, threads=3)
    again = queue()
    again.facts = replace(again.facts, predictors=({**USED[0], "sha256": "cd"},))
    rerun(again, [1] * 19)
    with pytest.raises(FrontierError, match=r"other predictors than .* finds now \(h100/vllm-0.24.0/fa3\)"):
        result.interval("ttft_p99", replications=19, threads=3)


def test_what_is_not_known_has_no_interval(rerun: Callable[..., None]) -> None:
    result = queue(scenario={"name": "x"}, peak_flops_per_s=None)
    with pytest.raises(FrontierError, match="mfu of this result is None: there is nothing"):
        result.interval("mfu")
    with pytest.raises(FrontierError, match=r"rejected_by_reason of this result is \{\}"):
        result.interval("rejected_by_reason")
