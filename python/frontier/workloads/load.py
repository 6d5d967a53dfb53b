"""Loading a trace: find out what the file is, read it in pieces, keep compact columns."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from frontier.errors import WorkloadError, nearest_name, show_value
from frontier.units import format_duration
from frontier.workloads import rows as row_readers
from frontier.workloads import source
from frontier.workloads.builtin import builtin_path, builtin_traces
from frontier.workloads.columns import Problem
from frontier.workloads.formats import Format, Request, choose_format
from frontier.workloads.loaded import LoadedTrace, LoadReport
from frontier.workloads.prefixes import Prefixes
from frontier.workloads.rows import FAILED, Rows, Sessions
from frontier.workloads.segments import ranges
from frontier.workloads.values import BadValueError

if TYPE_CHECKING:
    import polars as pl

BadRow = Literal["error", "skip"]
Unsorted = Literal["error", "sort"]

_SAMPLED_OBJECTS: Final = 100
_Scalar = TypeVar("_Scalar", bound=np.generic)


def load_trace(
    path: str | os.PathLike[str],
    *,
    format: str = "auto",
    columns: Mapping[str, str | None] | None = None,
    time_unit: str | None = None,
    block_size: int | None = None,
    on_bad_row: BadRow = "error",
    on_unsorted: Unsorted = "error",
    max_requests: int | None = None,
    models: Sequence[str] | None = None,
    chunk_bytes: int = source.CHUNK_BYTES,
) -> LoadedTrace:
    """Load a trace from a CSV, JSON-lines or Parquet file (text may be gzipped), or a built-in one by name.

    Files are read in pieces of bounded size; what stays in memory while loading is some 40 bytes per request
    and 25 per distinct block hash. The first arrival becomes time 0.

    Args:
        path: a file, or a name of `builtin_traces()`.
        format: a name of `frontier.workloads.FORMAT_NAMES`; `auto` tells it from the header.
        columns: source column per role (`arrival`, `prompt_tokens`, `output_tokens`, `priority`, `session`,
            `hash_ids`, `model`), in place of those of the format. An arrival of None puts all requests at
            time 0.
        time_unit: of the arrival column: `s`, `ms`, `us`, `ns` or `datetime` (UTC unless an offset is given).
        block_size: tokens per block hash.
        on_bad_row: `error` stops at the first row that cannot be used; `skip` leaves such rows out and counts
            them in the report, by reason.
        on_unsorted: `error` stops at the first arrival that is before its predecessor; `sort` sorts stably.
        max_requests: stop reading after this many usable requests, in the order of the file.
        models: names of the models that requests may be for, which are numbered in this order; the column
            `model`, if the format and `columns` name no other, has one in each row. Not read if not given.
        chunk_bytes: text read at once.

    Raises:
        WorkloadError: with file, line (of Parquet: row), column and value, and what is allowed.

    """
    request = Request(format, columns, time_unit, block_size, None if models is None else tuple(models))
    request.check()
    _check_options(on_bad_row, on_unsorted, max_requests, chunk_bytes)
    name, file = _find(path)
    container = source.find_container(file)
    loader = _Loader(name, on_bad_row, max_requests)
    try:
        if container == "parquet":
            loader.read_parquet(file, request)
        else:
            loader.read_text(file, request, container, chunk_bytes)
    except WorkloadError as error:
        if error.file != str(file) or name == error.file:
            raise
        raise WorkloadError(
            error.message, file=name, line=error.line, column=error.column, value=error.value
        ) from error
    return loader.finish(on_unsorted)


def load_table(
    table: Mapping[str, pl.Series], fmt: Format, *, on_bad_row: BadRow, on_unsorted: Unsorted
) -> LoadedTrace:
    """Make a trace of a table in memory, whose columns by name are those of the format.

    Raises:
        WorkloadError: as `load_trace`; the name of the format stands for the file, and rows are its lines.
    """
    _check_options(on_bad_row, on_unsorted, None, 1)
    row_readers.check_types({name: column.dtype for name, column in table.items()}, fmt, fmt.name)
    loader = _Loader(fmt.name, on_bad_row, None)
    loader.read_table(table, fmt)
    return loader.finish(on_unsorted)


def _check_options(on_bad_row: str, on_unsorted: str, max_requests: int | None, chunk_bytes: int) -> None:
    for option, value, allowed in (
        ("on_bad_row", on_bad_row, ("error", "skip")),
        ("on_unsorted", on_unsorted, ("error", "sort")),
    ):
        if value not in allowed:
            message = f"{option} was {show_value(value)}, must be one of {', '.join(allowed)}"
            raise WorkloadError(message, value=value)
    for option, number in (("max_requests", max_requests), ("chunk_bytes", chunk_bytes)):
        if number is not None and number < 1:
            raise WorkloadError(f"{option} was {number}, must be at least 1", value=number)


def _find(path: str | os.PathLike[str]) -> tuple[str, Path]:
    """Return (name for messages, file)."""
    name = os.fspath(path)
    if name in builtin_traces():
        return name, builtin_path(name)
    file = Path(name)
    if file.is_file():
        return name, file
    what = "is a directory" if file.is_dir() else "does not exist"
    near = nearest_name(name, builtin_traces())
    hint = f"; did you mean the built-in trace '{near}'?" if near else ""
    raise WorkloadError(
        f"{what}, must be a file or a built-in trace ({', '.join(builtin_traces())}){hint}", file=name
    )


class _Loader:
    """Gathers the usable rows of a file."""

    def __init__(self, name: str, on_bad_row: BadRow, max_requests: int | None) -> None:
        self._name = name
        self._on_bad_row = on_bad_row
        self._max_requests = max_requests
        self._format = Format("", {})
        self._pieces: list[Rows] = []
        self._prefixes: Prefixes | None = None
        self._rows_read = 0
        self._kept = 0
        self._skipped: Counter[str] = Counter()

    def read_parquet(self, file: Path, request: Request) -> None:
        """Read a Parquet file."""
        schema = source.parquet_schema(file)
        self._set_format(choose_format(request, list(schema), self._name))
        row_readers.check_types(schema, self._format, self._name)
        sessions = Sessions()
        for first_row, frame in source.read_parquet(file, row_readers.source_columns(self._format)):
            numbers = np.arange(first_row, first_row + len(frame), dtype=np.int64)
            table = {column.name: column for column in frame.get_columns()}
            self._add(row_readers.rows_of_table(numbers, table, self._format, sessions))
            if self._is_full():
                return

    def read_table(self, table: Mapping[str, pl.Series], fmt: Format) -> None:
        """Read the columns of a table in memory."""
        self._set_format(fmt)
        numbers = np.arange(1, len(next(iter(table.values()))) + 1, dtype=np.int64)
        self._add(row_readers.rows_of_table(numbers, table, fmt, Sessions()))

    def read_text(self, file: Path, request: Request, container: source.Container, chunk_bytes: int) -> None:
        """Read a CSV or JSON-lines file."""
        pieces = source.read_lines(file, chunk_bytes)
        first = next(((line, text) for line, text in pieces if text.strip()), None)
        if first is None:
            raise WorkloadError("is empty, must hold at least one request", file=self._name)
        sessions = Sessions()
        if container == "jsonl":
            self._set_format(choose_format(request, _keys(*first, self._name), self._name))
            for line, text in chain([first], pieces):
                self._add(row_readers.rows_of_json(line, text, self._format, sessions))
                if self._is_full():
                    return
            return
        header, line, body = _split_header(*first, self._name)
        self._set_format(choose_format(request, header, self._name))
        rest: Iterator[tuple[int, str]] = chain([(line, body)], pieces)
        for line, text in rest:
            self._add(row_readers.rows_of_csv(line, text, header, self._format, sessions))
            if self._is_full():
                return

    def _set_format(self, fmt: Format) -> None:
        self._format = fmt
        if "hash_ids" in fmt.columns and fmt.block_size is not None:
            self._prefixes = Prefixes(fmt.block_size)

    def _is_full(self) -> bool:
        return self._max_requests is not None and self._kept >= self._max_requests

    def _add(self, rows: Rows) -> None:
        row_readers.check_rows(rows, self._format)
        failed = rows.failed if rows.failed is not None else np.zeros(len(rows), np.bool_)
        first_problem: dict[int, Problem] = {}
        for problem in rows.problems:
            if not failed[problem.row]:
                first_problem.setdefault(problem.row, problem)
        usable = ~failed
        usable[list(first_problem)] = False
        end = len(rows)
        if self._max_requests is not None:
            # Rows after the last one wanted are not looked at.
            end = min(end, int(np.searchsorted(np.cumsum(usable), self._max_requests - self._kept)) + 1)
            usable[end:] = False
        if first_problem and self._on_bad_row == "error" and min(first_problem) < end:
            raise self._bad_row(rows, first_problem[min(first_problem)])
        self._rows_read += end
        self._skipped.update(
            f"{problem.column}: {problem.reason}" if problem.column else problem.reason
            for row, problem in first_problem.items()
            if row < end
        )
        if count := int(failed[:end].sum()):
            self._skipped[FAILED] += count
        self._kept += int(usable.sum())
        kept = np.flatnonzero(usable)
        if self._prefixes is not None:
            self._prefixes.add(*_hashes_of(rows, kept), rows.prompt_tokens[kept])
        self._pieces.append(_take(rows, kept))

    def _bad_row(self, rows: Rows, problem: Problem) -> WorkloadError:
        return WorkloadError(
            f"{problem.message} (on_bad_row='skip' leaves such rows out)",
            file=self._name,
            line=int(rows.lines[problem.row]),
            column=problem.column,
            value=problem.value,
        )

    def finish(self, on_unsorted: Unsorted) -> LoadedTrace:
        """Return the trace."""
        if self._kept == 0:
            raise WorkloadError(self._nothing_left(), file=self._name)
        rows = _join(self._pieces)
        prompts = None if self._prefixes is None else self._prefixes.finish()
        is_sorted = bool((rows.arrival_ns[1:] >= rows.arrival_ns[:-1]).all())
        if not is_sorted:
            if on_unsorted == "error":
                raise self._unsorted(rows)
            order = np.argsort(rows.arrival_ns, kind="stable")
            rows = _take(rows, order)
            prompts = None if prompts is None else prompts.take(order)
        offset = int(rows.arrival_ns[0])
        return LoadedTrace(
            arrival_ns=rows.arrival_ns - offset,
            prompt_tokens=rows.prompt_tokens.astype(np.uint32),
            output_tokens=rows.output_tokens.astype(np.uint32),
            priority=None if rows.priority is None else rows.priority.astype(np.int32),
            session=rows.session,
            model=rows.model,
            models=self._format.models,
            segment_offsets=None if prompts is None else prompts.offsets,
            segment_stream=None if prompts is None else prompts.stream,
            segment_start=None if prompts is None else prompts.start,
            segment_length=None if prompts is None else prompts.length,
            encoder_tokens=None if rows.encoder_tokens is None else rows.encoder_tokens.astype(np.uint32),
            report=LoadReport(
                file=self._name,
                format=self._format.name,
                rows_read=self._rows_read,
                rows_skipped=dict(self._skipped),
                arrival_offset_ns=offset,
                sorted=not is_sorted,
            ),
        )

    def _nothing_left(self) -> str:
        if self._rows_read == 0:
            return "has a header but no rows, must hold at least one request"
        reasons = ", ".join(f"{count} x {reason}" for reason, count in self._skipped.items())
        return f"all {self._rows_read} rows were skipped ({reasons}), at least one must be usable"

    def _unsorted(self, rows: Rows) -> WorkloadError:
        row = int(np.argmax(rows.arrival_ns[1:] < rows.arrival_ns[:-1])) + 1
        early = int(rows.arrival_ns[row - 1] - rows.arrival_ns[row])
        return WorkloadError(
            f"arrives {format_duration(early)} before the request of line {rows.lines[row - 1]}, arrivals"
            " must not go back (on_unsorted='sort' sorts them)",
            file=self._name,
            line=int(rows.lines[row]),
            column=self._format.columns["arrival"],
            value=int(rows.arrival_ns[row]),
        )


def _split_header(first_line: int, text: str, file: str) -> tuple[list[str], int, str]:
    """Return (column names, line number of what follows, what follows)."""
    while True:
        head, _, text = text.partition("\n")
        first_line += 1
        if not head.strip():
            continue
        try:
            names = next(csv.reader([head.removesuffix("\r")]))
        except csv.Error as error:
            message = f"the header is no CSV ({error}); lines must end with \\n or \\r\\n"
            raise WorkloadError(message, file=file, line=first_line - 1) from None
        return [name.strip() for name in names], first_line, text


def _keys(first_line: int, text: str, file: str) -> list[str]:
    """Return the keys of the first objects of JSON lines, in order of appearance."""
    keys: dict[str, None] = {}
    problem: WorkloadError | None = None
    seen = 0
    for number, line in enumerate(text.split("\n"), first_line):
        if not line.strip():
            continue
        try:
            keys.update(dict.fromkeys(row_readers.read_object(line)))
        except BadValueError as bad:
            problem = problem or WorkloadError(str(bad), file=file, line=number, value=line)
        seen += 1
        if seen == _SAMPLED_OBJECTS:
            break
    if not keys and problem is not None:
        raise problem
    return list(keys)


def _take(rows: Rows, index: NDArray[np.intp]) -> Rows:
    """Return the rows `index`, without their hashes."""
    return Rows(
        rows.lines[index],
        rows.arrival_ns[index],
        rows.prompt_tokens[index],
        rows.output_tokens[index],
        None if rows.priority is None else rows.priority[index],
        None if rows.session is None else rows.session[index],
        model=None if rows.model is None else rows.model[index],
        encoder_tokens=None if rows.encoder_tokens is None else rows.encoder_tokens[index],
    )


def _hashes_of(rows: Rows, index: NDArray[np.intp]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return (hashes, their number per row) of the rows `index`, in ascending order."""
    assert rows.hashes is not None
    assert rows.hash_counts is not None
    if len(index) == len(rows):
        return rows.hashes, rows.hash_counts
    counts = rows.hash_counts[index]
    begins = (np.cumsum(rows.hash_counts) - rows.hash_counts)[index]
    return rows.hashes[ranges(begins, counts)], counts


def _join(pieces: list[Rows]) -> Rows:
    def join(columns: list[NDArray[_Scalar] | None]) -> NDArray[_Scalar] | None:
        present = [column for column in columns if column is not None]
        return np.concatenate(present) if present else None

    return Rows(
        np.concatenate([piece.lines for piece in pieces]),
        np.concatenate([piece.arrival_ns for piece in pieces]),
        np.concatenate([piece.prompt_tokens for piece in pieces]),
        np.concatenate([piece.output_tokens for piece in pieces]),
        join([piece.priority for piece in pieces]),
        join([piece.session for piece in pieces]),
        model=join([piece.model for piece in pieces]),
        encoder_tokens=join([piece.encoder_tokens for piece in pieces]),
    )
