"""Columns of a chunk of a table, from strings to integers.

Plain digits are converted by polars; every other value goes through the readers of `values`, which alone
decide what is accepted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from frontier.workloads import values
from frontier.workloads.formats import Role
from frontier.workloads.values import BadValueError

_FRACTION = {10**9: 9, 10**6: 6, 10**3: 3, 1: 0}


@dataclass(frozen=True)
class Problem:
    """Why a row cannot be used: `row` is its index in the chunk, `column` its name in the file."""

    row: int
    column: str | None
    value: object
    reason: str
    message: str


@dataclass(frozen=True)
class Column:
    """Integers of a column, with 0 where a problem names the row."""

    values: NDArray[np.int64]
    problems: list[Problem]


def type_allowed(role: Role, dtype: pl.DataType) -> str | None:
    """Return None if a column of this type can have the role, else what types can."""
    text = dtype in (pl.String, pl.Categorical, pl.Enum, pl.Null)
    match role:
        case "arrival":
            return None if text or dtype.is_numeric() or dtype == pl.Datetime else "numbers, dates or text"
        case "session" | "model":
            return None if text or dtype.is_integer() else "whole numbers or text"
        case "hash_ids":
            inner = getattr(dtype, "inner", None) if isinstance(dtype, (pl.List, pl.Array)) else None
            lists = inner is not None and (inner.is_numeric() or inner in (pl.String, pl.Null))
            return None if text or lists else "lists of whole numbers, or text"
        case _:
            return None if text or dtype.is_numeric() else "numbers or text"


def read_column(name: str, cells: pl.Series, quick: pl.Series, read: Callable[[object], int]) -> Column:
    """Return `quick` where it is not null, and what `read` makes of the cell elsewhere."""
    numbers = quick.fill_null(0).to_numpy().astype(np.int64)
    problems: list[Problem] = []
    for row in quick.is_null().arg_true().to_list():
        cell = cells[row]
        try:
            numbers[row] = read(cell)
        except BadValueError as bad:
            problems.append(Problem(row, name, cell, bad.reason, str(bad)))
    return Column(numbers, problems)


def read_tokens(name: str, cells: pl.Series, *, zero: bool = False) -> Column:
    """Return numbers of tokens, 0 allowed on demand."""
    if cells.dtype.is_integer():
        quick = cells.cast(pl.Int64, strict=False)
    else:
        cells = _strings(cells)
        quick = _only(cells, cells.str.contains("^[0-9]{1,10}$")).cast(pl.Int64)
    quick = _only(quick, quick.is_between(0 if zero else 1, values.MAX_TOKENS))
    return read_column(name, cells, quick, values.read_tokens_or_zero if zero else values.read_tokens)


def read_priorities(name: str, cells: pl.Series) -> Column:
    """Return priorities."""
    if not cells.dtype.is_integer():
        cells = _strings(cells)
    quick = cells.cast(pl.Int32, strict=False).cast(pl.Int64)
    return read_column(name, cells, quick, values.read_priority)


def read_models(name: str, cells: pl.Series, models: Sequence[str]) -> Column:
    """Return the numbers of models by their names."""
    cells = _strings(cells)
    numbers = pl.Series(range(len(models)), dtype=pl.Int64)
    quick = cells.replace_strict(pl.Series(models), numbers, default=None, return_dtype=pl.Int64)
    return read_column(name, cells, quick, lambda cell: values.read_model(cell, models))


def read_arrivals(name: str, cells: pl.Series, time_unit: str) -> Column:
    """Return arrivals in ns. A column that holds dates by its own type is read as such, whatever the unit."""
    if cells.dtype == pl.Datetime:
        cells = cells.dt.cast_time_unit("ns").cast(pl.Int64)
        time_unit = "ns"
    if time_unit == values.DATETIME:
        cells = _strings(cells)
        return read_column(name, cells, _quick_datetimes(cells), values.read_datetime)
    unit_ns = values.TIME_UNITS[time_unit]
    if cells.dtype.is_integer():
        numbers = cells.cast(pl.Int64, strict=False)
        # 2^62 is the limit, and no product below it overflows 63 bits.
        small = numbers.is_between(0, values.MAX_ARRIVAL_NS // unit_ns)
        quick = _only(numbers, small) * unit_ns
    else:
        cells = _strings(cells)
        quick = _quick_decimals(cells, unit_ns)
    return read_column(name, cells, quick, lambda cell: values.read_time(cell, unit_ns))


def read_hash_lists(
    name: str, cells: pl.Series
) -> tuple[NDArray[np.uint64], NDArray[np.int64], list[Problem]]:
    """Return (hashes of all rows, their number per row, problems).

    Cells are lists, or strings of hashes separated by `|`. A row with a problem has none.
    """
    if isinstance(cells.dtype, pl.Array):
        cells = cells.arr.to_list()
    elif not isinstance(cells.dtype, pl.List):
        # An empty string is an empty list, not a list of an empty string.
        cells = (
            _strings(cells)
            .str.strip_chars()
            .str.split("|")
            .list.eval(pl.element().filter(pl.element() != ""))
        )
    # By way of strings: a cast would cut the decimals of floats off.
    hashes = cells.list.eval(pl.element().cast(pl.String).str.strip_chars().cast(pl.UInt64, strict=False))
    slow = hashes.is_null() | hashes.list.eval(pl.element().is_null()).list.any().fill_null(True)
    mended: list[list[int]] = []
    problems: list[Problem] = []
    rows = slow.arg_true().to_list()
    for row in rows:
        try:
            mended.append(_hash_list(cells[row]))
        except BadValueError as bad:
            mended.append([])
            problems.append(Problem(row, name, cells[row], bad.reason, str(bad)))
    if rows:
        source = np.arange(len(hashes))
        source[rows] = len(hashes) + np.arange(len(rows))
        hashes = pl.concat([hashes, pl.Series(mended, dtype=pl.List(pl.UInt64))]).gather(source)
    counts = hashes.list.len().to_numpy().astype(np.int64)
    return hashes.explode().drop_nulls().to_numpy().astype(np.uint64), counts, problems


def _hash_list(cell: pl.Series | None) -> list[int]:
    if cell is None:
        raise BadValueError("missing", "is missing, must be a list of block hashes")
    return [values.read_hash(value) for value in cell.to_list()]


def _only(cells: pl.Series, mask: pl.Series) -> pl.Series:
    """Return the cells where the mask is true, and null elsewhere."""
    return pl.select(pl.when(mask).then(cells)).to_series()


def _strings(cells: pl.Series) -> pl.Series:
    return cells if cells.dtype == pl.String else cells.cast(pl.String)


def _quick_decimals(cells: pl.Series, unit_ns: int) -> pl.Series:
    """Return ns of cells such as `12` or `12.034`, null for anything else."""
    digits = _FRACTION[unit_ns]
    whole = f"[0-9]{{1,{18 - digits}}}"
    groups = cells.str.extract_groups(rf"^({whole})(?:\.([0-9]{{0,{digits}}}))?$").struct.unnest()
    units = groups.to_series(0).cast(pl.Int64, strict=False)
    fraction = ("0" + groups.to_series(1).fill_null("")).str.pad_end(digits + 1, "0").cast(pl.Int64)
    return units * unit_ns + fraction


def _quick_datetimes(cells: pl.Series) -> pl.Series:
    """Return ns since 1970 of UTC dates with up to nine digits of a second, null for anything else."""
    pattern = r"^([0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2})(?:\.([0-9]{1,9}))?(?:\+00:00)?$"
    groups = cells.str.extract_groups(pattern).struct.unnest()
    seconds = groups.to_series(0).str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="ms", strict=False)
    fraction = groups.to_series(1).fill_null("").str.pad_end(9, "0").cast(pl.Int64)
    milliseconds = seconds.cast(pl.Int64)
    inside = milliseconds.is_between(0, values.MAX_ARRIVAL_NS // 10**6 - 1000)
    return _only(milliseconds, inside) * 10**6 + fraction
