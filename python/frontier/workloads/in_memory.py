"""Traces from columns that a program has in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from frontier.errors import WorkloadError
from frontier.workloads.formats import Format, Role
from frontier.workloads.load import BadRow, Unsorted, load_table
from frontier.workloads.loaded import LoadedTrace

if TYPE_CHECKING:
    import polars as pl
    from numpy.typing import NDArray

    ColumnLike = NDArray[Any] | pl.Series | Sequence[Any]

_NAME: Final = "columns"
_ROLES: Final[dict[str, Role]] = {
    "arrival_s": "arrival",
    "prompt_tokens": "prompt_tokens",
    "output_tokens": "output_tokens",
    "priority": "priority",
    "session": "session",
    "model": "model",
    "encoder_tokens": "encoder_tokens",
}


def trace_from_columns(
    *,
    arrival_s: ColumnLike,
    prompt_tokens: ColumnLike,
    output_tokens: ColumnLike,
    priority: ColumnLike | None = None,
    session: ColumnLike | None = None,
    model: ColumnLike | None = None,
    encoder_tokens: ColumnLike | None = None,
    on_bad_row: BadRow = "error",
    on_unsorted: Unsorted = "error",
) -> LoadedTrace:
    """Make a trace of columns of equal length: numpy arrays, polars series (columns of a frame), or lists.

    The first arrival becomes time 0. For a scenario to name the trace, write it to a file:
    `trace_from_columns(...).write("mine.parquet")`.

    Args:
        arrival_s: arrivals in seconds, ascending; rounded to whole ns.
        prompt_tokens: tokens of each prompt, at least 1.
        output_tokens: tokens generated, at least 1.
        priority: whole numbers, lower is served first; all 0 if not given.
        session: text or whole numbers that name the request's conversation, None for none.
        model: names of the models that requests are for, where several are served.
        encoder_tokens: tokens of a vision tower that come with each prompt; all 0 if not given.
        on_bad_row: `error` stops at the first row that cannot be used; `skip` leaves such rows out and counts
            them in the report.
        on_unsorted: `error` stops at the first arrival that is before its predecessor; `sort` sorts stably.

    Raises:
        WorkloadError: with row (1-based, as its line), column and value, and what is allowed.
    """
    given = {
        "arrival_s": arrival_s,
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "priority": priority,
        "session": session,
        "model": model,
        "encoder_tokens": encoder_tokens,
    }
    table = {name: _series(name, column) for name, column in given.items() if column is not None}
    rows = len(table["arrival_s"])
    for name, column in table.items():
        if len(column) != rows:
            message = f"has {len(column)} rows, arrival_s has {rows}; all columns must be of one length"
            raise WorkloadError(message, file=_NAME, column=name, value=len(column))
    if rows == 0:
        raise WorkloadError("has no rows, must have at least one", file=_NAME, column="arrival_s", value=0)
    columns: dict[Role, str | None] = {_ROLES[name]: name for name in table}
    fmt = Format(_NAME, columns, models=_names(table.get("model")))
    return load_table(table, fmt, on_bad_row=on_bad_row, on_unsorted=on_unsorted)


def _names(column: pl.Series | None) -> tuple[str, ...]:
    """Return the names of a column in order of first appearance."""
    if column is None:
        return ()
    names = column.cast(str).str.strip_chars().unique(maintain_order=True).drop_nulls().to_list()
    return tuple(name for name in names if name)


def _series(name: str, column: ColumnLike) -> pl.Series:
    import polars as pl  # noqa: PLC0415

    if isinstance(column, pl.Series):
        return column
    if isinstance(column, str | bytes) or not (isinstance(column, Sequence) or hasattr(column, "__array__")):
        message = f"was {type(column).__name__}, must be an array, a series or a list"
        raise WorkloadError(message, file=_NAME, column=name, value=column)
    if isinstance(column, Sequence):
        return pl.Series(name, _of_one_kind(column), strict=False)
    array = np.asarray(column)
    if array.ndim != 1:
        message = f"has {array.ndim} dimensions, must have 1"
        raise WorkloadError(message, file=_NAME, column=name, value=array.shape)
    return pl.Series(name, _of_one_kind(array.tolist()) if array.dtype == object else array)


def _of_one_kind(cells: Sequence[Any]) -> Sequence[Any]:
    """Return the cells as text where they are of several kinds, which no typed column holds."""
    kinds = {type(cell) for cell in cells if cell is not None}
    if kinds <= {int, float} or kinds <= {bool}:
        return cells
    return [cell if cell is None else str(cell) for cell in cells]
