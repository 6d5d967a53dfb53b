"""The quick way through polars accepts nothing that the readers of single values would read otherwise."""

import datetime
from functools import partial

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from frontier.workloads import columns, values
from frontier.workloads.values import BadValueError

_NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70).map(str),
    st.decimals(allow_nan=True, allow_infinity=True).map(str),
    st.floats().map(str),
    st.from_regex(r"[+-]?[0-9]{0,12}(\.[0-9]{0,14})?(e-?[0-9]{1,2})?", fullmatch=True),
    st.sampled_from(["", " ", "NaN", "-0", "007", "1_0", "٣", "1,5", "0x1", "4294967295", "4294967296"]),
    st.text(max_size=6),
)
_DATES = st.one_of(
    st.datetimes().map(str),
    st.from_regex(r"(19|20)[0-9]{2}-[01][0-9]-[0-3][0-9] [0-2][0-9]:[0-5][0-9]:[0-5][0-9]", fullmatch=True),
    st.from_regex(
        r"2024-0[0-9]-[0-3][0-9] 1[0-9]:00:0[0-9](\.[0-9]{0,12})?(Z|[+-]0[0-9]:00)?", fullmatch=True
    ),
    st.text(max_size=6),
)


def _outcome(read, cell):
    """Return (value, None), or (0, reason and message) where the cell is refused."""
    try:
        return read(cell), None
    except BadValueError as bad:
        return 0, (bad.reason, str(bad))


def _check(read_column, read, cells):
    column = read_column("c", pl.Series(cells, dtype=pl.String))
    problems = {problem.row: (problem.reason, problem.message) for problem in column.problems}
    got = [(number, problems.get(row)) for row, number in enumerate(column.values.tolist())]
    assert got == [_outcome(read, cell) for cell in cells]


@given(st.lists(st.none() | _NUMBERS, min_size=1, max_size=20))
def test_token_columns_agree_with_single_values(cells):
    _check(columns.read_tokens, values.read_tokens, cells)
    _check(partial(columns.read_tokens, zero=True), values.read_tokens_or_zero, cells)


@given(st.lists(st.none() | _NUMBERS, min_size=1, max_size=20))
def test_priority_columns_agree_with_single_values(cells):
    _check(columns.read_priorities, values.read_priority, cells)


@pytest.mark.parametrize("unit", values.TIME_UNITS)
@given(cells=st.lists(st.none() | _NUMBERS, min_size=1, max_size=20))
def test_arrival_columns_agree_with_single_values(unit, cells):
    read = partial(values.read_time, unit_ns=values.TIME_UNITS[unit])
    _check(partial(columns.read_arrivals, time_unit=unit), read, cells)


@given(st.lists(st.none() | _DATES, min_size=1, max_size=20))
def test_date_columns_agree_with_single_values(cells):
    _check(partial(columns.read_arrivals, time_unit="datetime"), values.read_datetime, cells)


def test_integer_columns_are_read_without_strings():
    tokens = columns.read_tokens("c", pl.Series([1, 0, -3, 2**32, None, 7], dtype=pl.Int64))
    assert tokens.values.tolist() == [1, 0, 0, 0, 0, 7]
    assert [problem.reason for problem in tokens.problems] == ["zero", "negative", "out of range", "missing"]
    arrivals = columns.read_arrivals("c", pl.Series([0, 5, -1, 2**63 - 1], dtype=pl.Int64), "s")
    assert arrivals.values.tolist() == [0, 5 * 10**9, 0, 0]
    assert [problem.reason for problem in arrivals.problems] == ["negative", "out of range"]
    huge = columns.read_arrivals("c", pl.Series([2**64 - 1, 3], dtype=pl.UInt64), "ns")
    assert (huge.values.tolist(), huge.problems[0].reason) == ([0, 3], "out of range")


def test_columns_of_dates_need_no_unit():
    moment = datetime.datetime(2024, 5, 10, 0, 0, 1, 5)
    for unit in ("ms", "us", "ns"):
        column = columns.read_arrivals("c", pl.Series([moment], dtype=pl.Datetime(unit)), "s")
        assert column.values[0] == 1_715_299_201 * 10**9 + (0 if unit == "ms" else 5_000)


@pytest.mark.parametrize(
    "cells",
    [
        pl.Series([[1, 2], [], [2**64 - 1]], dtype=pl.List(pl.UInt64)),
        pl.Series(["1|2", "", "18446744073709551615"]),
        pl.Series([" 1 | 2 ", " ", "18446744073709551615"]),
        pl.Series([["1.0", "2e0"], [], [str(2**64 - 1)]], dtype=pl.List(pl.String)),
    ],
)
def test_hash_lists_come_in_many_shapes(cells):
    hashes, counts, problems = columns.read_hash_lists("h", cells)
    assert (hashes.tolist(), counts.tolist(), problems) == ([1, 2, 2**64 - 1], [2, 0, 1], [])


def test_lists_of_floats_are_hashes_only_if_whole():
    hashes, counts, problems = columns.read_hash_lists("h", pl.Series([[1.0, 2.0], [1.5], [3.0]]))
    assert (hashes.tolist(), counts.tolist()) == ([1, 2, 3], [2, 0, 1])
    assert [(problem.row, problem.reason) for problem in problems] == [(1, "not a whole number")]


def test_rows_with_bad_hashes_have_none():
    cells = pl.Series(["1|2", "3|x", None, "4|-1", "5"])
    hashes, counts, problems = columns.read_hash_lists("h", cells)
    assert (hashes.tolist(), counts.tolist()) == ([1, 2, 5], [2, 0, 0, 0, 1])
    assert [(p.row, p.reason) for p in problems] == [(1, "not a number"), (2, "missing"), (3, "negative")]
