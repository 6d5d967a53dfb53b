"""Parquet files with columns of odd types, missing values and damaged bytes."""

import io
import random
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import polars as pl
from mutated_trace_case import TraceCase, case_of
from mutated_trace_files import NUM_ROWS, Table
from mutation_outcome import INF, NAN

Rest = dict[str, Any]


def parquet_cases(table: Table, rng: random.Random) -> Iterator[TraceCase]:
    """Yield mutations of a Parquet file."""
    for what, data, rest in (*_single_values(table, rng), *_odd_types(table), *_files(table, rng)):
        yield case_of(table, what, rest.pop("expect"), data, **rest)


def _single_values(table: Table, rng: random.Random) -> Iterator[tuple[str, bytes, Rest]]:
    frame = table.frame()
    for role in ("arrival", "prompt_tokens", "output_tokens"):
        name = table.roles[role]
        whole = [int(value) for value in frame[name]]
        for value, kind in (
            (None, pl.Int64), (-1, pl.Int64), (-(2**63), pl.Int64), (2**63 - 1, pl.Int64),
            (2**64 - 1, pl.UInt64), (NAN, pl.Float64), (INF, pl.Float64), (-INF, pl.Float64),
            (1e300, pl.Float64), (None, pl.Float64), ("", pl.String), ("x", pl.String), (None, pl.String),
            ("-3", pl.String), ("\x00", pl.String),
        ):  # fmt: skip
            row = rng.randrange(1, NUM_ROWS - 1)
            cells: list[Any] = [str(cell) for cell in whole] if kind == pl.String else list(whole)
            cells[row] = value
            changed = frame.with_columns(pl.Series(name, cells, dtype=kind, strict=False))
            rest = {"expect": "error", "line": row + 1, "column": name, "skips": 1}
            yield f"{name} of {kind} with {value!r} in row {row}", _bytes(changed), rest
        for row, value in ((3, 0), (5, 0.5)):
            if role != "arrival":
                cells = [float(cell) for cell in whole]
                cells[row] = value
                changed = frame.with_columns(pl.Series(name, cells))
                yield (
                    f"{name} with {value}",
                    _bytes(changed),
                    {"expect": "error", "line": row + 1, "column": name, "skips": 1},
                )


def _odd_types(table: Table) -> Iterator[tuple[str, bytes, Rest]]:
    frame = table.frame()
    same: list[pl.DataType | type[pl.DataType]] = [
        pl.Int64,
        pl.UInt64,
        pl.Float64,
        pl.String,
        pl.Decimal(20, 0),
    ]
    odd: list[tuple[str, list[Any], Any]] = [
        ("flags", [True] * NUM_ROWS, pl.Boolean),
        ("lists", [[5]] * NUM_ROWS, pl.List(pl.Int64)),
        ("structs", [{"x": 5}] * NUM_ROWS, pl.Struct({"x": pl.Int64})),
        ("bytes", [b"5"] * NUM_ROWS, pl.Binary),
        ("broken bytes", [b"\xff\xfe"] * NUM_ROWS, pl.Binary),
        ("dates", [date(2024, 5, 10)] * NUM_ROWS, pl.Date),
        ("times", [time(1, 2, 3)] * NUM_ROWS, pl.Time),
        ("durations", [timedelta(seconds=5)] * NUM_ROWS, pl.Duration),
        ("moments", [datetime(2024, 5, 10)] * NUM_ROWS, pl.Datetime),
        ("decimals", [Decimal("5.25")] * NUM_ROWS, pl.Decimal(10, 2)),
        ("categories", ["a"] * NUM_ROWS, pl.Categorical),
        ("nothing", [None] * NUM_ROWS, pl.Null),
        ("arrays", [[5, 6]] * NUM_ROWS, pl.Array(pl.Int64, 2)),
        ("nested lists", [[[5]]] * NUM_ROWS, pl.List(pl.List(pl.Int64))),
    ]
    for role in ("arrival", "prompt_tokens", "output_tokens", "priority", "session", "hash_ids"):
        name = table.roles.get(role)
        if name is None:
            continue
        if role in ("arrival", "prompt_tokens", "output_tokens"):
            for kind in same:
                yield (
                    f"{name} as {kind}",
                    _bytes(frame.with_columns(pl.col(name).cast(kind))),
                    {"expect": "same"},
                )
        for what, cells, kind in odd:
            rest: Rest = {"expect": "ends"}
            if role in ("prompt_tokens", "output_tokens"):
                rest = {"expect": "error", "column": name}
            yield f"{name} of {what}", _bytes(frame.with_columns(pl.Series(name, cells, dtype=kind))), rest


def _files(table: Table, rng: random.Random) -> Iterator[tuple[str, bytes, Rest]]:
    frame = table.frame()
    data = _bytes(frame)
    yield "no rows", _bytes(frame.clear()), {"expect": "error"}
    yield "no columns", _bytes(pl.DataFrame()), {"expect": "error"}
    yield "empty", b"", {"expect": "error"}
    yield "only the magic", b"PAR1PAR1", {"expect": "error"}
    yield "half of it", data[: len(data) // 2], {"expect": "error"}
    yield "without its end", data[:-4], {"expect": "error"}
    yield "without its start", data[4:], {"expect": "error"}
    yield "with a long footer", data[:-8] + b"\xff\xff\xff\x7fPAR1", {"expect": "error"}
    yield (
        "text",
        table.text().encode() if table.container != "parquet" else b"a,b\n1,2\n",
        {"expect": "error"},
    )
    yield "an Arrow file", _arrow(frame), {"expect": "error"}
    yield "named .csv", data, {"expect": "error", "suffix": ".csv"}
    yield "named .jsonl", data, {"expect": "error", "suffix": ".jsonl"}
    yield "without a suffix", data, {"expect": "same", "suffix": ""}
    yield "in small groups of rows", _bytes(frame, row_group_size=3), {"expect": "same"}
    for packing in ("uncompressed", "snappy", "gzip", "lz4"):
        yield f"packed with {packing}", _bytes(frame, compression=packing), {"expect": "same"}
    for number in range(30):
        changed = bytearray(_bytes(frame, compression=("zstd", "uncompressed")[number % 2]))
        for _ in range(rng.choice((1, 1, 2, 8))):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        if rng.random() < 0.2:
            del changed[rng.randrange(len(changed)) :]
        yield f"damage {number}", bytes(changed), {"expect": "ends"}


def _bytes(frame: pl.DataFrame, **options: Any) -> bytes:
    file = io.BytesIO()
    frame.write_parquet(file, **options)
    return file.getvalue()


def _arrow(frame: pl.DataFrame) -> bytes:
    file = io.BytesIO()
    frame.write_ipc(file)
    return file.getvalue()
