"""The saturation verdict, confidence intervals and sums."""

import math

import numpy as np
import pytest
from fifo import MS, Ask, S, facts, run

from frontier.results import Sample
from frontier.results.confidence import mean_half_width, p99_half_width
from frontier.results.saturation import SATURATED, STABLE, UNCLEAR
from frontier.results.statistics import exact_sum, sample, weighted_sample


def poisson(rate_per_s: float, count: int, seed: int = 1, tokens: int = 1) -> list[Ask]:
    gaps = np.random.default_rng(seed).exponential(1 / rate_per_s, count)
    return [Ask(int(at * 1e9), tokens) for at in np.cumsum(gaps)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("load", "count", "verdict"),
    [
        (0.3, 300, STABLE),
        (0.7, 2000, STABLE),
        (1.3, 2000, SATURATED),
        (2.0, 300, SATURATED),
        (5.0, 60, SATURATED),
    ],
)
def test_an_md1_queue_is_judged_by_its_load(load: float, count: int, verdict: str, seed: int) -> None:
    # A service of 100 ms: the load is the arrival rate over 10 per second.
    summary = run(poisson(load * 10, count, seed), interval_ns=1000 * S).summary()
    assert summary.saturation == verdict
    assert f"{count:,} arrivals" in summary.saturation_reason
    assert ("exceeds what the cluster can serve" in " ".join(summary.warnings)) == (verdict == SATURATED)


def test_a_drained_run_is_still_called_saturated() -> None:
    # All requests finish, long after the last arrival: the window spans the drain, the verdict does not.
    summary = run(poisson(20, 400)).summary()
    assert summary.unfinished == 0
    assert summary.saturation == SATURATED


def test_a_late_start_is_no_growth() -> None:
    asks = [Ask(ask.arrival_ns + 1000 * S, 1) for ask in poisson(5, 500)]
    assert run(asks, interval_ns=1000 * S).summary().saturation == STABLE


def test_the_verdict_is_about_the_window() -> None:
    calm = poisson(5, 300)
    rush = [Ask(calm[-1].arrival_ns + ask.arrival_ns, 1) for ask in poisson(20, 300, seed=2)]
    result = run(calm + rush)
    middle = calm[-1].arrival_ns / 1e9
    assert result.summary(end=middle).saturation == STABLE
    assert result.summary(start=middle).saturation == SATURATED


@pytest.mark.parametrize(
    ("asks", "settings", "reason"),
    [
        ([Ask(second * S) for second in range(49)], {}, "49 requests arrived in the window; 50 are needed"),
        ([Ask(0)] * 60, {}, "all 60 requests arrived at once"),
        (
            [Ask(0, 900, replica=i) for i in range(59)] + [Ask(S)],
            {"stop_ns": 2 * S, "replicas": 59},
            "none of the 60",
        ),
        ([Ask(i * MS, 1000, replica=i) for i in range(60)], {"replicas": 60}, "less than 3 times the median"),
        ([], {}, "0 requests arrived in the window; 50 are needed"),
        (
            [Ask(second * S, reject=second % 3) for second in range(60)],
            {},
            "20 requests arrived in the window, not counting 40 rejected; 50 are needed",
        ),
        (
            [Ask(second * S, reject=1) for second in range(60)],
            {},
            "all 60 requests that arrived in the window were rejected",
        ),
        ([Ask(0, reject=1)], {}, "the only request that arrived in the window was rejected"),
    ],
    ids=["few", "burst", "unfinished", "short", "none", "some rejected", "all rejected", "one rejected"],
)
def test_too_short_to_tell(asks: list[Ask], settings: dict[str, int], reason: str) -> None:
    summary = run(asks, **settings).summary()
    assert summary.saturation == UNCLEAR
    assert reason in summary.saturation_reason


def test_a_slow_steady_rise_asks_for_a_longer_run() -> None:
    # 300 regular arrivals, faster than the service by some per cent: the queue ends at about 3 per per cent.
    verdicts = {}
    for excess in (2, 8, 30):
        summary = run([Ask(i * 100 * MS * 100 // (100 + excess), 1) for i in range(300)]).summary()
        verdicts[excess] = (summary.saturation, "run longer" in summary.saturation_reason)
    assert verdicts == {2: (STABLE, False), 8: (UNCLEAR, True), 30: (SATURATED, False)}


def test_mean_half_width_by_hand() -> None:
    # 20 batches of 20: batch means alternate between 1 and 3, which is no positive correlation.
    values = np.repeat(np.tile([1.0, 3.0], 10), 20)
    expected = 2.093 * math.sqrt(20 / 19) / math.sqrt(20)
    assert mean_half_width(values) == pytest.approx(expected)
    # The same as totals over two gaps each.
    assert mean_half_width(values * 2, np.full(400, 2.0)) == pytest.approx(expected)


@pytest.mark.parametrize("count", [0, 1, 99])
def test_few_requests_give_no_interval(count: int) -> None:
    assert mean_half_width(np.arange(count, dtype=float)) is None
    assert p99_half_width(np.arange(4999, dtype=float)) is None


def test_equal_latencies_give_an_interval_of_nothing() -> None:
    assert mean_half_width(np.full(100, 0.1)) == pytest.approx(0.0, abs=1e-15)
    assert p99_half_width(np.full(5000, 0.1)) == pytest.approx(0.0, abs=1e-15)


def test_a_drift_gives_no_interval() -> None:
    assert mean_half_width(np.arange(10_000, dtype=float)) is None
    assert p99_half_width(np.arange(10_000, dtype=float)) is None


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    # An autoregressive series with mean 0, whose naive interval would cover the truth far too seldom.
    rng = np.random.default_rng(11)
    covered = given = naive = 0
    for _ in range(200):
        noise = rng.normal(size=4000)
        series = np.empty(4000)
        level = 0.0
        for index, shock in enumerate(noise):
            level = 0.8 * level + shock
            series[index] = level
        half = mean_half_width(series)
        naive += abs(series.mean()) <= 1.96 * series.std() / math.sqrt(4000)
        if half is not None:
            given += 1
            covered += abs(series.mean()) <= half
    assert given > 180
    assert 0.90 <= covered / given <= 0.99
    assert naive / 200 < 0.6


def test_p99_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(5)
    truth = math.log(100)  # of the exponential distribution with mean 1
    covered = given = 0
    for _ in range(150):
        series = rng.exponential(size=6000)
        half = p99_half_width(series)
        if half is not None:
            given += 1
            covered += abs(np.percentile(series, 99) - truth) <= half
    assert given > 130
    assert 0.89 <= covered / given <= 1.0


def test_summary_carries_intervals() -> None:
    summary = run(poisson(5, 5000, tokens=2), facts(), decode_ns=5 * MS, interval_ns=100_000 * S).summary()
    for key in ("mean_ttft_ci95_s", "mean_e2el_ci95_s", "p99_ttft_ci95_s", "p99_e2el_ci95_s"):
        assert 0 < summary[key] < 0.3
    assert summary.mean_tpot_ci95_s == pytest.approx(0.0, abs=1e-12)
    assert summary.mean_itl_ci95_s == pytest.approx(0.0, abs=1e-12)
    # Pollaczek and Khinchine: mean wait of M/D/1 at load 0.525.
    wait = 0.525 * 0.105 / (2 * (1 - 0.525))
    assert abs(summary.mean_ttft_s - 0.1 - wait) <= 2 * summary.mean_ttft_ci95_s


def test_exact_sum_passes_the_range_of_int64() -> None:
    assert exact_sum(np.full(10, 2**62, np.int64)) == 10 * 2**62
    assert exact_sum(np.array([-5, 3], np.int64)) == -2
    assert exact_sum(np.zeros(0, np.int64)) == 0


def test_samples_follow_numpy() -> None:
    values = np.array([5, 1, 3], np.int64)
    counts = np.array([2, 4, 1], np.int64)
    plain = np.repeat(values, counts)
    for made in (weighted_sample(values, counts), sample(plain)):
        assert isinstance(made, Sample)
        assert len(made) == 7
        wanted = np.linspace(0, 100, 41).tolist()
        assert made.percentiles(wanted) == pytest.approx(np.percentile(plain, wanted).tolist())
