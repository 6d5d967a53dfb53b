"""Mutations of the valid traces: rows, columns and settings, and all others by name."""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from mutated_parquet import parquet_cases
from mutated_trace_case import TraceCase, case_of
from mutated_trace_files import MAX_MODEL_LEN, NUM_BLOCKS, NUM_ROWS, Table
from mutated_trace_texts import damaged, headers, texts
from mutated_trace_values import wrong_hashes, wrong_values


def cases_of(table: Table) -> list[TraceCase]:
    """Return the cases made from one valid trace, always the same ones."""
    rng = random.Random(f"trace {table.name}{table.suffix}")
    makers = [_oversized, _rows, _options]
    of_text = [wrong_values, wrong_hashes, headers, texts, damaged]
    makers += [parquet_cases] if table.container == "parquet" else of_text
    return [case for maker in makers for case in maker(table, rng)]


def _oversized(table: Table, rng: random.Random) -> Iterator[TraceCase]:
    """Make requests that can never be served; they are rejected, and counted, one by one."""
    role = "output_tokens" if table.hashes else "prompt_tokens"
    other = table.column_of("prompt_tokens" if table.hashes else "output_tokens")
    pool = (NUM_BLOCKS - 1) * 16 + 1
    for total in (pool - 1, pool, pool + 1, MAX_MODEL_LEN, MAX_MODEL_LEN + 1, 10**6, 10**9, 2**32 - 1):
        row = rng.randrange(NUM_ROWS)
        changed = table.with_cell(row, role, total - int(table.rows[row][other]))
        yield case_of(table, f"row {row} has {total} tokens", "rows", changed.data())
    row = rng.randrange(1, NUM_ROWS)
    over = 2**32 - int(table.rows[row][other])
    changed = table.with_cell(row, role, over)
    place = {"line": table.line_of(row), "column": table.roles["output_tokens"], "skips": 1}
    yield case_of(table, f"row {row} has 2^32 tokens", "error", changed.data(), value=2**32, **place)
    every = table
    for row in range(NUM_ROWS):
        every = every.with_cell(row, role, 10**9)
    yield case_of(table, "every row has 10^9 tokens", "rows", every.data())


def _rows(table: Table, rng: random.Random) -> Iterator[TraceCase]:
    """Repeat, drop and reorder rows."""

    def with_rows(rows: list[list[Any]]) -> Table:
        return replace(table, rows=[list(row) for row in rows])

    rows = table.rows
    at = rng.randrange(NUM_ROWS)
    again = with_rows([*rows[: at + 1], rows[at], *rows[at + 1 :]])
    yield case_of(table, f"row {at} twice", "rows", again.data(), rows=NUM_ROWS + 1)
    yield case_of(
        table,
        "every row twice",
        "rows",
        with_rows([row for row in rows for _ in range(2)]).data(),
        rows=2 * NUM_ROWS,
    )
    tied = table
    for row in range(NUM_ROWS):
        tied = tied.with_cell(row, "arrival", rows[0][table.column_of("arrival")])
    yield case_of(table, "all at once", "rows", tied.data())
    yield case_of(table, "one row", "rows", with_rows(rows[at : at + 1]).data(), rows=1)
    yield case_of(
        table, f"row {at} missing", "rows", with_rows(rows[:at] + rows[at + 1 :]).data(), rows=NUM_ROWS - 1
    )
    for _ in range(3):
        one, other = sorted(rng.sample(range(NUM_ROWS), 2))
        if rows[one][table.column_of("arrival")] == rows[other][table.column_of("arrival")]:
            continue
        swapped = list(rows)
        swapped[one], swapped[other] = swapped[other], swapped[one]
        # The first row that is earlier than the one before it.
        line = table.line_of(_first_back(swapped, table.column_of("arrival")))
        data = with_rows(swapped).data()
        place = {"line": line, "column": table.roles["arrival"]}
        yield case_of(table, f"rows {one} and {other} swapped", "error", data, **place)
        options = {**table.options, "on_unsorted": "sort"}
        yield case_of(table, f"rows {one} and {other} swapped, sorted", "rows", data, options=options)
    back = with_rows(rows[::-1])
    yield case_of(
        table, "backwards", "error", back.data(), column=table.roles["arrival"], line=table.line_of(1)
    )
    yield case_of(
        table, "backwards, sorted", "rows", back.data(), options={**table.options, "on_unsorted": "sort"}
    )
    if table.name == "burstgpt":
        failed = table.with_cell(at, "output_tokens", "0")
        yield case_of(table, f"row {at} failed", "rows", failed.data(), rows=NUM_ROWS - 1)
    order = rng.sample(range(len(table.columns)), len(table.columns))
    mixed = replace(
        table, columns=[table.columns[i] for i in order], rows=[[row[i] for i in order] for row in rows]
    )
    yield case_of(table, "columns in another order", "same", mixed.data())
    more = replace(table, columns=[*table.columns, "remark"], rows=[[*row, "x"] for row in rows])
    yield case_of(table, "one column more", "same", more.data())


def _first_back(rows: list[list[Any]], at: int) -> int:
    times = [
        float(row[at]) if not isinstance(row[at], str) or "-" not in row[at] else row[at] for row in rows
    ]
    return next(i for i in range(1, len(times)) if times[i] < times[i - 1])


def _options(table: Table, rng: random.Random) -> Iterator[TraceCase]:
    """Load with settings that do not fit the file."""
    del rng
    options = dict(table.options)
    needed = [table.roles[role] for role in ("arrival", "prompt_tokens", "output_tokens")]
    for name in needed:
        at = table.columns.index(name)
        rows = [[*row[:at], *row[at + 1 :]] for row in table.rows]
        less = replace(table, columns=[*table.columns[:at], *table.columns[at + 1 :]], rows=rows)
        named = {**options, "format": table.name}
        yield case_of(
            table, f"without column {name}", "error", less.data(), options=named, column=name, line=1
        )
        if table.name != "plain":
            yield case_of(
                table,
                f"without column {name}, unnamed",
                "error",
                less.data(),
                value=needed[needed[0] == name],
            )
        typo = replace(
            table, columns=[f"{column}x" if column == name else column for column in table.columns]
        )
        yield case_of(
            table,
            f"column {name}x",
            "error",
            typo.data(),
            options=named,
            column=name,
            value=f"did you mean '{name}x'",
        )
    columns = {role: name for role, name in table.roles.items() if role not in ("chat", "parent")}
    wrong = {**options, "columns": {**columns, "prompt_tokens": "nowhere"}}
    yield case_of(table, "a column that is not there", "error", options=wrong, column="nowhere", line=1)
    other = "mooncake" if table.name != "mooncake" else "azure"
    if table.name != "qwen-bailian":
        yield case_of(table, f"as {other}", "error", options={"format": other}, line=1)
    unit = "datetime" if table.name != "azure" else "s"
    yield case_of(table, f"times in {unit}", "error", options={**options, "time_unit": unit},
                line=table.line_of(0), column=table.roles["arrival"])  # fmt: skip
    if table.hashes:
        yield case_of(
            table,
            "blocks of 3 tokens",
            "error",
            options={**options, "block_size": 3},
            column=table.roles["hash_ids"],
        )
    else:
        yield case_of(
            table, "blocks without hashes", "error", options={**options, "block_size": 16}, value=16
        )
