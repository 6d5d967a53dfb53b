"""What a single value of a trace may be."""

import pytest

from frontier.workloads import values
from frontier.workloads.values import BadValueError

S, MS = 10**9, 10**6


@pytest.mark.parametrize(
    ("value", "tokens"),
    [
        (1, 1),
        ("374", 374),
        (" 374 ", 374),
        ("+3", 3),
        ("374.0", 374),
        ("1e3", 1000),
        (374.0, 374),
        (2**32 - 1, 2**32 - 1),
    ],
)
def test_token_counts_are_whole_numbers_however_written(value, tokens):
    assert values.read_tokens(value) == tokens


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (0, "zero"),
        ("0", "zero"),
        (-1, "negative"),
        ("-5", "negative"),
        (2**32, "out of range"),
        ("9" * 50, "out of range"),
        ("1e999", "out of range"),
        ("3.5", "not a whole number"),
        (3.5, "not a whole number"),
        ("NaN", "not a number"),
        (float("nan"), "not a number"),
        (float("inf"), "not a number"),
        ("1_000", "not a number"),
        ("٣", "not a number"),
        ("0x10", "not a number"),
        ("twelve", "not a number"),
        ("1" * 1000, "not a number"),
        (True, "not a number"),
        ([1], "not a number"),
        ("", "missing"),
        ("  ", "missing"),
        (None, "missing"),
    ],
)
def test_other_token_counts_are_refused_with_what_is_allowed(value, reason):
    with pytest.raises(
        BadValueError, match=r"must be a whole number of tokens in 1 \.\.\. 4294967295"
    ) as caught:
        values.read_tokens(value)
    assert caught.value.reason == reason


def test_zero_tokens_are_allowed_where_they_mark_failures():
    assert values.read_tokens_or_zero("0") == 0
    with pytest.raises(BadValueError):
        values.read_tokens_or_zero("-1")


@pytest.mark.parametrize(
    ("value", "unit_ns", "arrival_ns"),
    [
        ("0", S, 0),
        ("-0", S, 0),
        ("4.541877", S, 4_541_877_000),
        ("5.8926549999999995", S, 5_892_655_000),
        ("0.0000000005", S, 0),
        ("0.0000000015", S, 2),
        ("5e-05", S, 50_000),
        (".5", S, 500_000_000),
        ("19440110.0", S, 19_440_110 * S),
        ("1753780607.550317897", S, 1_753_780_607_550_317_897),
        (61.114, S, 61_114_000_000),
        (27482, MS, 27_482 * MS),
        ("0.25", MS, 250_000),
        (str(2**62), 1, 2**62),
    ],
)
def test_times_are_converted_exactly(value, unit_ns, arrival_ns):
    assert values.read_time(value, unit_ns) == arrival_ns


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("-0.001", "negative"),
        (-1, "negative"),
        ("nan", "not a number"),
        ("inf", "not a number"),
        ("2024-05-10 00:00:00", "not a number"),
        ("1e11", "out of range"),
        ("1e300", "out of range"),
        (None, "missing"),
    ],
)
def test_other_times_are_refused(value, reason):
    with pytest.raises(BadValueError, match=r"must be a number of s that is not negative") as caught:
        values.read_time(value, S)
    assert caught.value.reason == reason


@pytest.mark.parametrize(
    ("text", "arrival_ns"),
    [
        ("1970-01-01 00:00:00", 0),
        ("2023-11-16 18:15:46.6805900", 1_700_158_546_680_590_000),
        ("2024-05-10 00:00:00.009930+00:00", 1_715_299_200_009_930_000),
        ("2024-05-10 00:00:00+00:00", 1_715_299_200_000_000_000),
        ("2024-05-10T00:00:00Z", 1_715_299_200_000_000_000),
        ("2024-05-10T02:00:00.5+02:00", 1_715_299_200_500_000_000),
        ("2024-05-09 17:30:00 -0630", 1_715_299_200_000_000_000),
        ("2024-02-29 00:00:00.123456789", 1_709_164_800_123_456_789),
    ],
)
def test_dates_are_utc_unless_an_offset_is_given(text, arrival_ns):
    assert values.read_datetime(text) == arrival_ns


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("", "missing"),
        (None, "missing"),
        ("12.5", "not a date"),
        ("2023-02-29 00:00:00", "not a date"),
        ("2023-11-16 25:00:00", "not a date"),
        ("2023-11-16", "not a date"),
        ("1969-12-31 23:59:59", "out of range"),
        ("2300-01-01 00:00:00", "out of range"),
    ],
)
def test_other_dates_are_refused(value, reason):
    with pytest.raises(BadValueError, match="must be a date and time such as") as caught:
        values.read_datetime(value)
    assert caught.value.reason == reason
