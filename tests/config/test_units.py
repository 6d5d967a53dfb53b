import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontier import units


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("50ms", 50_000_000),
        ("1.5s", 1_500_000_000),
        ("10us", 10_000),
        ("10µs", 10_000),
        ("10\u03bcs", 10_000),
        (" 2 min ", 120 * 10**9),
        ("1h", 3600 * 10**9),
        ("2d", 172_800 * 10**9),
        ("1e3 ns", 1000),
        ("1_000ns", 1000),
        ("0.30000000000000004s", 300_000_000),
        ("2.5ns", 2),
        ("0s", 0),
        (0, 0),
        (0.0, 0),
        (datetime.timedelta(milliseconds=3), 3_000_000),
    ],
)
def test_durations_are_read_to_the_nanosecond(text: object, nanoseconds: int) -> None:
    assert units.parse_duration_ns(text) == nanoseconds


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (5, "a time needs a unit: write '5ms'"),
        (0.5, "needs a unit"),
        ("5", "needs a unit"),
        ("5m", "ambiguous"),
        ("-5ms", "must not be negative"),
        ("nan s", "must be a duration"),
        (float("nan"), "needs a unit"),
        ("inf", "must be a duration"),
        ("0.1ns", "shorter than the clock's tick"),
        ("200000d", "longer than 146 years"),
        ("1e999999999s", "out of range"),
        ("5MS", "did you mean 'ms'"),
        ("5 parsecs", "unit 'parsecs' is unknown"),
        ("9" * 100 + "s", "must be a duration"),
        ("", "must be a duration"),
        (True, "must be a duration"),
        (None, "must be a duration"),
        ([5], "must be a duration"),
    ],
)
def test_bad_durations_are_refused(value: object, words: str) -> None:
    with pytest.raises(ValueError, match=r"^was ") as error:
        units.parse_duration_ns(value)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("80GiB", 80 * 2**30),
        ("24GB", 24 * 10**9),
        ("1.5KiB", 1536),
        ("512B", 512),
        (4096, 4096),
        ("0.5MB", 500_000),
    ],
)
def test_sizes(value: object, expected: int) -> None:
    assert units.parse_bytes(value) == expected


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("80G", "write 'GB' for bytes"),
        ("80gib", "did you mean 'GiB'"),
        ("0.3B", "not a whole number of bytes"),
        (0.5, "not a whole number of bytes"),
        (-1, "must not be negative"),
        (float("inf"), "must be finite"),
        ("80", "needs a unit"),
    ],
)
def test_bad_sizes_are_refused(value: object, words: str) -> None:
    with pytest.raises(ValueError, match=r"^was ") as error:
        units.parse_bytes(value)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("3.35TB/s", 3.35e12), ("400Gbps", 50e9), ("400 Gbit/s", 50e9), ("1GiB/s", 2**30), ("900GBps", 900e9)],
)
def test_bandwidths_tell_bits_from_bytes(value: str, expected: float) -> None:
    assert units.parse_bandwidth(value) == expected


def test_a_bandwidth_needs_a_unit() -> None:
    with pytest.raises(ValueError, match="needs a unit"):
        units.parse_bandwidth(3.35e12)


@pytest.mark.parametrize(
    ("value", "expected"), [("989TFLOPS", 989e12), ("1.4 PFLOP/s", 1.4e15), ("660TOPS", 660e12)]
)
def test_compute_rates(value: str, expected: float) -> None:
    assert units.parse_flops(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(12, 12.0), ("12/s", 12.0), ("90/min", 1.5), ("12 req/s", 12.0), ("36 / h", 0.01), (0.5, 0.5)],
)
def test_rates(value: object, expected: float) -> None:
    assert units.parse_rate(value) == expected


@pytest.mark.parametrize(
    ("value", "expected"), [("10%", 0.1), (0.1, 0.1), ("92 %", 0.92), (1, 1.0), ("0.5", 0.5)]
)
def test_shares(value: object, expected: float) -> None:
    assert units.parse_share(value) == expected


@pytest.mark.parametrize("value", ["110%", 1.5, -0.1, "10ms", float("nan"), True, "ten"])
def test_bad_shares_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"^was "):
        units.parse_share(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(8192, 8192), ("8k", 8000), ("8K", 8192), ("25.6k", 25_600), (8.0, 8), ("1M", 2**20)],
)
def test_counts_take_the_suffixes_of_vllm(value: object, expected: int) -> None:
    assert units.parse_count(value) == expected


@pytest.mark.parametrize("value", [8.5, "8.5", -1, True, None, "eight", float("nan"), 10**30, "8 k tokens"])
def test_bad_counts_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"^was "):
        units.parse_count(value)


@pytest.mark.parametrize(
    ("nanoseconds", "text"),
    [
        (0, "0s"),
        (50_000_000, "50ms"),
        (1_500_000_000, "1.5s"),
        (60 * 10**9, "60s"),
        (120 * 10**9, "2min"),
        (7200 * 10**9, "2h"),
        (90 * 10**9, "90s"),
        (12_345, "12.345us"),
        (1, "1ns"),
    ],
)
def test_durations_are_written_readably(nanoseconds: int, text: str) -> None:
    assert units.format_duration(nanoseconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(80 * 2**30, "80GiB"), (24 * 10**9, "24GB"), (1536, "1536B"), (0, "0B")]
)
def test_sizes_are_written_readably(size: int, text: str) -> None:
    assert units.format_bytes(size) == text


@given(st.integers(0, units.MAX_DURATION_NS))
def test_any_duration_reads_back(nanoseconds: int) -> None:
    assert units.parse_duration_ns(units.format_duration(nanoseconds)) == nanoseconds


@given(st.integers(0, 2**62))
def test_any_size_reads_back(size: int) -> None:
    assert units.parse_bytes(units.format_bytes(size)) == size


@given(st.floats(1e-3, 1e18))
def test_any_rate_reads_back(rate: float) -> None:
    assert units.parse_rate(units.format_rate(rate)) == rate
    assert units.parse_bandwidth(units.format_bandwidth(rate)) == rate
    assert units.parse_flops(units.format_flops(rate)) == rate
