"""The measurement window: what belongs to it, how it is given, and what is wrong with a bad one."""

from html import escape

import pytest
from fifo import MS, Ask, S, facts, run

from frontier.errors import ConfigError

# Two requests overlap: the second waits 100 ms.
PAIR = [Ask(0, 5), Ask(40 * MS, 3)]


def test_window_counts_what_belongs_to_it() -> None:
    # One request each second, 140 ms long; the one arriving at 2 s lies in [2, 3), and so does its work.
    result = run([Ask(second * S, 5) for second in range(6)], interval_ns=S // 4)
    summary = result.summary(start=2.0, end=3.0)
    assert (summary.window_start_s, summary.window_end_s, summary.duration) == (2.0, 3.0, 1.0)
    assert (summary.arrived, summary.completed, summary.total_output_tokens) == (1, 1, 5)
    assert summary.output_throughput == 5.0
    assert summary.gpu_busy_share == pytest.approx(0.140)
    # Half of the request: it arrives before the window and finishes in it.
    half = result.summary(start=2.105, end=3.0)
    assert (half.arrived, half.measured_requests, half.completed, half.total_output_tokens) == (0, 0, 1, 4)
    assert half.max_concurrent_requests == 1
    assert half.mean_ttft_s is None
    # It arrives in the window and finishes after it: measured, not completed.
    early = result.summary(start=1.9, end=2.12)
    assert (early.arrived, early.measured_requests, early.completed, early.total_output_tokens) == (
        1,
        1,
        0,
        2,
    )
    assert early.mean_e2el_s == 0.14


def test_counters_are_interpolated_at_the_edges() -> None:
    # Samples at 1 s and 2 s only: the 140 ms from 1 s on are spread over the second.
    result = run([Ask(second * S, 5) for second in range(4)])
    assert result.summary(start=1.0, end=1.5).gpu_busy_share == pytest.approx(0.140)
    assert result.summary(start=1.25, end=2.25).gpu_busy_share == pytest.approx(0.140)


@pytest.mark.parametrize(
    ("arguments", "start", "end"),
    [
        ({}, 0.5, 9.0),
        ({"warmup": 0}, 0.0, 9.0),
        ({"warmup": "10%", "cooldown": "20 %"}, 1.0, 8.0),
        ({"warmup": "1500ms", "cooldown": 2.5}, 1.5, 7.5),
        ({"start": 3.0}, 3.0, 9.0),
        ({"start": 3, "end": 10.0}, 3.0, 10.0),
        ({"end": 4.0}, 0.5, 4.0),
    ],
)
def test_window_arguments(arguments: dict[str, object], start: float, end: float) -> None:
    result = run([Ask(0, 1), Ask(9900 * MS, 1)], facts(warmup=0.5, cooldown="10%"))
    window = result.window(**arguments)  # type: ignore[arg-type]
    assert (window.start_ns / 1e9, window.end_ns / 1e9) == (start, end)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"warmup": -1.0}, "warmup: was -1.0, must be 0 or more"),
        ({"warmup": float("nan")}, "warmup: was nan"),
        ({"warmup": True}, "warmup: was True"),
        ({"warmup": "100%"}, "warmup: was '100%'"),
        ({"warmup": "soon"}, "warmup: .*soon"),
        ({"cooldown": "5"}, "cooldown: .*unit"),
        ({"start": -2.0}, "start: was -2.0"),
        ({"end": float("inf")}, "end: was inf"),
        ({"end": 11.0}, "end: was 11 s, but the run ended at 10 s"),
        ({"start": 5.0, "end": 5.0}, "the window is empty: from 5 s to 5 s of a run of 10 s; it must start"),
        ({"start": 12.0}, "from 12 s to 10 s of a run of 10 s; it must start before it ends, both within"),
        ({"warmup": 30.0}, "warm-up and cool-down must be less than 10 s together"),
        ({"warmup": "60%", "cooldown": "40%"}, "the window is empty"),
        ({"warmup": 1.0, "start": 1.0}, "warmup: was given together with start"),
        ({"cooldown": 1.0, "end": 1.0}, "cooldown: was given together with end"),
    ],
)
def test_bad_windows_are_refused(arguments: dict[str, object], message: str) -> None:
    result = run([Ask(0, 1), Ask(9900 * MS, 1)])
    with pytest.raises(ConfigError, match=message):
        result.summary(**arguments)  # type: ignore[arg-type]


def test_a_run_without_length_has_no_room_for_a_warm_up() -> None:
    result = run([], facts(warmup="30s"))
    with pytest.raises(ConfigError, match="from 30 s to 0 s of a run of 0 s"):
        result.summary()
    assert result.summary(warmup="10%", cooldown=0).duration == 0.0


@pytest.mark.parametrize("warmup", ["30s", "soon", 0.26])
def test_a_window_that_cannot_be_measured_is_shown_not_raised(warmup: float | str) -> None:
    result = run(PAIR, facts(warmup=warmup, scenario={"name": "<short>"}))
    problem = result.window_problem()
    assert problem is not None
    with pytest.raises(ConfigError) as caught:
        result.summary()
    assert str(caught.value) == problem
    page = result._repr_html_()
    assert escape(problem) in page
    assert "2 finished" in page
    assert "summary(warmup=..., cooldown=...)" in page
    assert escape('"<short>"') in page
    assert "Result(2 requests" in repr(result)
    assert result.summary(warmup=0).completed == 2
    assert run(PAIR).window_problem() is None


def test_the_summary_of_the_default_window_is_made_once() -> None:
    result = run(PAIR, facts(warmup=0.01))
    assert result.summary() is result.summary()
    assert result.summary() == result.summary(warmup=0.01)
    assert result.summary() != result.summary(warmup=0)
