"""One mutated trace file, and what must come of it."""

from dataclasses import dataclass
from typing import Any, Literal

from mutated_trace_files import NUM_ROWS, Table

Expect = Literal["error", "same", "rows", "ends"]


@dataclass(frozen=True)
class TraceCase:
    """A mutated trace file.

    Attributes:
        name: format and mutation, for messages.
        suffix: of the file.
        data: its bytes.
        options: keyword arguments of `load_trace`.
        expect: a `WorkloadError`; the `same` requests as in the table; `rows` requests; or `ends` in either.
        line: 1-based line (row of Parquet) that the error must name.
        column: column that it must name.
        value: value that it must show.
        rows: requests that must be left, by default all.
        skips: rows that `on_bad_row='skip'` must leave out, None where that mends nothing.
        table: the valid trace.
    """

    name: str
    suffix: str
    data: bytes
    options: dict[str, Any]
    expect: Expect
    table: Table
    line: int | None = None
    column: str | None = None
    value: Any = None
    rows: int = NUM_ROWS
    skips: int | None = None


def case_of(table: Table, what: str, expect: Expect, data: bytes | None = None, **rest: Any) -> TraceCase:
    rest.setdefault("options", dict(table.options))
    name = f"{table.name}{table.suffix}/{what}"
    suffix = rest.pop("suffix", table.suffix)
    return TraceCase(name, suffix, table.data() if data is None else data, expect=expect, table=table, **rest)
