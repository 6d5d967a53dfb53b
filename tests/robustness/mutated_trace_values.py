"""Mutations of single values of a trace, each with the line and column that must be named."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from mutated_trace_case import TraceCase, case_of
from mutated_trace_files import NUM_ROWS, Table
from mutation_outcome import INF, NAN


@dataclass(frozen=True)
class Wrong:
    """Values that a role must refuse, in text and in JSON."""

    csv: list[str]
    json: list[Any] = field(default_factory=list)


_NO_NUMBERS: Final = [
    "", " ", "nan", "NaN", "inf", "-inf", "abc", "5ms", "0x10", "٣", "1_000", "--5", "NULL", "None", "true",
    "1;2", "5 6", "+", "-", ".", "5.5.5", "5\x00", "'5'", "💥", "1e9999", "9" * 400,
]  # fmt: skip
_NO_JSON_NUMBERS: Final = [True, False, [], [5], {}, {"x": 5}, "abc", "", NAN, INF, -INF, 10**30]
_SIZES: Final = Wrong(
    ["-5", "-1", "0", "2.5", "4294967296", "1000000000000000000", "1e-3", "0.0", *_NO_NUMBERS],
    [None, -5, 0, 2.5, 2**32, 10**18, "-5", 1e-3, *_NO_JSON_NUMBERS],
)
_TIMES: Final = Wrong(
    ["-1", "-0.001", "1e30", "10:00", "2023-11-16 18:17:03", "5s", "9" * 30, *_NO_NUMBERS],
    [None, -1, -0.001, 1e30, "10:00", "2023-11-16 18:17:03", *_NO_JSON_NUMBERS],
)
_NO_MOMENTS: Final = [
    "12.5", "1700158623", "2023-13-45 00:00:00", "2023-11-16", "18:17:03", "yesterday",
    "1969-12-31 23:59:59", "2300-01-01 00:00:00", "2023-11-16 25:00:00", "2023-11-16T18:17:03+99:00",
    "16/11/2023 18:17", "2023-02-29 01:01:01", "-2023-11-16 18:17:03", "2023-11-16 18:17:03.1.2",
    *_NO_NUMBERS,
]  # fmt: skip
_MOMENTS: Final = Wrong(_NO_MOMENTS)
_PRIORITIES: Final = Wrong(
    ["2.5", "high", "2147483648", "-2147483649", "nan", "1e30", "1_0"],
    [2.5, "high", 2**31, -(2**31) - 1, [], {}, True, NAN, INF],
)
_WRONG: Final[dict[str, Wrong]] = {
    "arrival": _TIMES,
    "prompt_tokens": _SIZES,
    "output_tokens": _SIZES,
    "priority": _PRIORITIES,
    "session": Wrong([], [[], {}, True]),
    "chat": Wrong([], [None, [], {}, True]),
    "parent": Wrong([], [[], {}, True]),
}
_HASHES: Final = Wrong(
    ["x", "-1", "1.5", "18446744073709551616", "nan", " "], ["x", -1, 1.5, 2**64, None, [1], {}, True, NAN]
)
"""Wrong single hashes."""


def _bad_cell(table: Table, row: int, role: str, value: Any, shown: Any = ...) -> TraceCase:
    changed = table.with_cell(row, role, value)
    what = f"row {row} {role} becomes {value!r:.60}"
    shown = value if shown is ... else shown
    place = {"line": table.line_of(row), "column": table.roles[role]}
    return case_of(table, what, "error", changed.data(), value=shown, skips=1, **place)


def wrong_values(table: Table, rng: random.Random) -> Iterator[TraceCase]:
    for role in table.roles:
        if role == "hash_ids":
            continue
        wrong = _MOMENTS if table.name == "azure" and role == "arrival" else _WRONG[role]
        values: list[Any] = wrong.csv if table.container == "csv" else wrong.json
        for value in rng.sample(values, min(8, len(values))):
            if table.name == "burstgpt" and role == "output_tokens" and value in ("0", "0.0"):
                continue
            yield _bad_cell(table, rng.randrange(1, NUM_ROWS - 1), role, value)
        if table.container == "jsonl" and role in ("arrival", "prompt_tokens", "output_tokens", "chat"):
            row = rng.randrange(1, NUM_ROWS - 1)
            lines = table.text().splitlines()
            record = json.loads(lines[row])
            del record[table.roles[role]]
            lines[row] = json.dumps(record)
            place = {"line": row + 1, "column": table.roles[role], "skips": 1}
            yield case_of(
                table, f"row {row} without {role}", "error", table.packed("\n".join(lines)), **place
            )


def wrong_hashes(table: Table, rng: random.Random) -> Iterator[TraceCase]:
    if table.hashes is None:
        return
    at = table.column_of("hash_ids")
    as_text = table.container == "csv"
    rows = [row for row in range(NUM_ROWS) if table.rows[row][at]]

    def hashes_of(row: int) -> list[Any]:
        cell = table.rows[row][at]
        return cell.split("|") if as_text else list(cell)

    def written(hashes: list[Any]) -> Any:
        return "|".join(map(str, hashes)) if as_text else hashes

    for wrong in _HASHES.csv if as_text else _HASHES.json:
        row = rng.choice(rows)
        hashes = hashes_of(row)
        hashes[rng.randrange(len(hashes))] = wrong
        shown = None if wrong in (" ", None) or len(hashes) > 1 else wrong
        yield _bad_cell(table, row, "hash_ids", written(hashes), shown)
    for extra in (2, 3, 100):
        row = rng.choice(rows)
        yield _bad_cell(
            table, row, "hash_ids", written([*hashes_of(row), *range(extra)]), len(hashes_of(row)) + extra
        )
    for few in (0, 1):
        row = rng.choice(
            [row for row in rows if len(hashes_of(row)) >= few + (2 if table.hashes[1] == "either" else 1)]
            or rows[:1]
        )
        if few < len(hashes_of(row)):
            yield _bad_cell(table, row, "hash_ids", written(hashes_of(row)[:few]), few)
    for value in ("1;2", "x|y", "|") if as_text else (5, "x", {}, True, {"0": 1}, [[]]):
        row = rng.choice(rows)
        yield _bad_cell(table, row, "hash_ids", value, None)
    # The same length, other content: nothing to object to.
    row = rng.choice(rows)
    huge = written([2**64 - 1 - i for i in range(len(hashes_of(row)))])
    yield case_of(table, f"row {row} has other hashes", "rows", table.with_cell(row, "hash_ids", huge).data())
    row = rng.choice(rows)
    longer = table.with_cell(row, "prompt_tokens", 5000)
    place = {"line": table.line_of(row), "column": table.roles["hash_ids"], "skips": 1}
    yield case_of(table, f"row {row} is longer than its hashes", "error", longer.data(), **place)
    twice = table.with_cell(row, "hash_ids", written([7] * len(hashes_of(row))))
    yield case_of(table, f"row {row} has one hash again and again", "rows", twice.data())
