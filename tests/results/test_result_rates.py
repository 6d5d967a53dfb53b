"""Peaks: requests and tokens of a second, requests at one instant, blocks between samples."""

from collections import Counter

import numpy as np
import pytest
from fifo import BLOCKS_PER_REQUEST, MS, Ask, S, facts, fifo, run

from frontier.results import Result
from frontier.results.rates import peak_count


def bench_peaks(result: Result) -> tuple[int, int]:
    """Return the most requests and tokens of a second as `vllm bench serve` counts them, one by one."""
    frame = result.requests.filter(result.requests["status"] == "finished")
    zero = int(frame["arrival_ns"].min())  # type: ignore[arg-type]
    requests, tokens = Counter[int](), Counter[int]()
    for request, begin, end in frame.select("request", "arrival_ns", "finished_ns").iter_rows():
        requests.update(range((begin - zero) // S, (end - zero) // S + 1))
        runs = result.token_runs
        for run_of, first, last in zip(runs.request, runs.first, runs.last, strict=True):
            if run_of == request:
                tokens.update((runs.end_ns[first : last + 1] - zero) // S)
    return max(requests.values(), default=0), max(tokens.values(), default=0)


def test_peaks_of_a_second_are_those_of_vllm_bench() -> None:
    rng = np.random.default_rng(11)
    arrivals = 3 * S // 7 + np.cumsum(rng.integers(10 * MS, 150 * MS, 300))
    asks = [Ask(int(at), int(rng.integers(1, 12)), replica=index % 2) for index, at in enumerate(arrivals)]
    result = run(asks, replicas=2)
    summary = result.summary()
    peaks = (summary.max_concurrent_requests, summary.max_output_tokens_per_s)
    assert peaks == bench_peaks(result)
    assert summary.peak_concurrent_requests < peaks[0]


def test_concurrency_of_vllm_is_that_of_whole_seconds_from_the_first_arrival() -> None:
    # Never two at once, but the first three touch the second from 0.5 s to 1.5 s.
    asks = [Ask(S // 2, 5), Ask(800 * MS, 5), Ask(1300 * MS, 5), Ask(1500 * MS, 5)]
    result = run([*asks, Ask(1400 * MS, 5, reject=1)])
    summary = result.summary()
    assert (summary.max_concurrent_requests, summary.peak_concurrent_requests) == (3, 1)
    assert summary.to_vllm_bench()["max_concurrent_requests"] == 3
    assert summary.max_output_tokens_per_s == 15
    assert bench_peaks(result) == (3, 15)
    # A window counts from its own start once a request is there: [0.6, 1.6) has parts of all four.
    assert result.summary(start=0.6).max_concurrent_requests == 4
    assert result.summary(start=0.7, end=1.3).max_concurrent_requests == 1
    assert result.summary(start=0.55, end=1.31).max_concurrent_requests == 3


def test_a_request_counts_in_the_seconds_of_its_start_and_end() -> None:
    # It lasts from 0 s to exactly 2 s; another one begins at 2 s, a third at 3 s.
    result = run([Ask(0, 191), Ask(2 * S, 1), Ask(3 * S, 1)])
    assert result.summary().max_concurrent_requests == 2
    assert result.summary(end=2.0).max_concurrent_requests == 1
    assert result.summary(start=2.5).max_concurrent_requests == 1


def test_requests_that_never_finish_are_left_out_as_vllm_does() -> None:
    summary = run([Ask(0, 5), Ask(300 * MS, 900), Ask(400 * MS, 5)], stop_ns=S).summary()
    assert (summary.max_concurrent_requests, summary.peak_concurrent_requests) == (1, 2)
    assert run([Ask(0, 900)], stop_ns=S).summary().max_concurrent_requests == 0


def test_peak_concurrency_is_that_of_half_open_intervals() -> None:
    # The first leaves at 140 ms exactly when the second arrives.
    asks = [Ask(0, 5), Ask(140 * MS, 5), Ask(140 * MS, 5)]
    assert run(asks).summary().peak_concurrent_requests == 2
    assert run(asks[:2]).summary().peak_concurrent_requests == 1
    assert run(asks).summary(start=0.14, end=0.2).peak_concurrent_requests == 2
    assert run([Ask(0, 5)]).summary(start=0.05, end=0.06).peak_concurrent_requests == 1


@pytest.mark.parametrize("seed", range(20))
def test_peaks_of_windows_equal_a_count_at_every_moment(seed: int) -> None:
    rng = np.random.default_rng(seed)
    begin = rng.integers(0, 30, 12)
    end = begin + rng.integers(0, 9, 12)
    assert peak_count(begin, end) == max(((begin <= at) & (end > at)).sum() for at in range(40))


def test_a_long_idle_stretch_costs_no_memory() -> None:
    century = 3_000_000_000 * S
    summary = run([Ask(0, 3), Ask(century, 5), Ask(century, 2)], interval_ns=century).summary()
    assert (summary.max_output_tokens_per_s, summary.max_concurrent_requests) == (7, 2)


# Requests of 10 blocks each; samples every second.  Replica 1 is idle but for [2.3 s, 2.44 s).
BURST = [Ask(2300 * MS, 5, replica=1)]


def test_peak_kv_use_is_exact_between_samples() -> None:
    # Samples at 1 s and 2 s see no block used.
    result = run([Ask(100 * MS, 5), Ask(1500 * MS, 5)], interval_ns=S)
    assert result.columns.timeline["used_blocks"].max() == 0
    assert result.summary().peak_kv_use == BLOCKS_PER_REQUEST / 100
    assert result.timeline["peak_used_blocks"].to_list() == [10, 10]


@pytest.mark.parametrize(
    ("start", "end", "peak"),
    [
        (0.0, 2.2, 0.0),  # idle up to the arrival, however far back the sample before lies
        (0.0, 2.3, 0.0),  # the window is half open
        (0.0, 2.31, 0.1),
        (2.9, 4.0, 0.1),  # blocks were held within the interval in which the window starts
        (3.0, 4.0, 0.0),
        (0.0, None, 0.1),
    ],
)
@pytest.mark.parametrize("idle_rows", [True, False])
def test_peak_kv_use_of_a_window(start: float, end: float | None, peak: float, idle_rows: bool) -> None:
    raw = fifo([*BURST, Ask(4900 * MS, 1, reject=1)], replicas=2)
    if not idle_rows:
        keep = np.isin(raw["timeline"]["time_ns"], [3 * S, 4900 * MS])
        raw["timeline"] = {name: values[keep] for name, values in raw["timeline"].items()}
    assert Result(raw, facts()).summary(start=start, end=end).peak_kv_use == peak
