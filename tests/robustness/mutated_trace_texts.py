"""Mutations of the text of a trace: headers, line ends, quotes, encodings, damage."""

import json
import random
from collections.abc import Iterator

from mutated_trace_case import TraceCase, case_of
from mutated_trace_files import NUM_ROWS, Table


def headers(table: Table, rng: random.Random) -> Iterator[TraceCase]:
    if table.container != "csv":
        return
    header, _, body = table.text().partition("\n")
    for what, text, expect in (
        ("spaces in the header", header.replace(",", " , ") + "\n" + body, "same"),
        ("quotes in the header", ",".join(f'"{name}"' for name in table.columns) + "\n" + body, "same"),
        ("no header", body, "error"),
        ("the header twice", f"{header}\n{header}\n{body}", "error"),
        ("the header at the end", f"{header}\n{body}{header}\n", "error"),
        ("a name twice", f"{header},{table.roles['arrival']}\n" + body.replace("\n", ",0\n"), "error"),
        ("semicolons", table.text().replace(",", ";"), "error"),
        ("tabs", table.text().replace(",", "\t"), "error"),
        ("capital names", header.swapcase() + "\n" + body, "error"),
    ):
        skips = 1 if what in ("the header twice", "the header at the end") else None
        line = {"the header twice": 2, "the header at the end": NUM_ROWS + 2}.get(what, 1)
        place = {"line": line, "skips": skips} if expect == "error" and what != "capital names" else {}
        if what == "capital names" and table.name == "plain":
            place = {"column": table.roles["arrival"]}
        yield case_of(table, what, expect, table.packed(text), **place)
    lines = table.text().splitlines()
    for row in rng.sample(range(NUM_ROWS), 3):
        for what, line in (
            ("one field more", lines[row + 1] + ",9"),
            ("one field less", lines[row + 1].rpartition(",")[0]),
            ("an open quote", '"' + lines[row + 1]),
            ("semicolons", lines[row + 1].replace(",", ";")),
        ):
            text = "\n".join([*lines[: row + 1], line, *lines[row + 2 :]])
            yield case_of(table, f"row {row} with {what}", "error", table.packed(text), line=row + 2, skips=1)
    quoted = "\n".join([lines[0], *(",".join(f'"{cell}"' for cell in line.split(",")) for line in lines[1:])])
    yield case_of(table, "quotes around all", "same", table.packed(quoted))


def texts(table: Table, rng: random.Random) -> Iterator[TraceCase]:
    text = table.text()
    lines = text.splitlines()
    for what, changed in (
        ("Windows line ends", text.replace("\n", "\r\n")),
        ("no last line end", text.rstrip("\n")),
        ("blank lines at the end", text + "\n \n\n"),
        ("blank lines at the start", "\n\n" + text),
        ("blank lines between", text.replace("\n", "\n\n")),
        ("a byte-order mark", "\ufeff" + text),
    ):
        yield case_of(table, what, "same", table.packed(changed))
    row = rng.randrange(NUM_ROWS)
    at = table.line_of(row) - 1
    for what, line in (("garbage", "💥 garbage"), ("brackets", "{}"), ("a list", "[1, 2]"), ("null", "null")):
        changed = "\n".join([*lines[:at], line, *lines[at + 1 :]])
        yield case_of(table, f"row {row} is {what}", "error", table.packed(changed), line=at + 1, skips=1)
    if table.container == "jsonl":
        for what, line in (
            ("cut off", lines[at][:-2]),
            ("two objects", lines[at] * 2),
            ("single quotes", lines[at].replace('"', "'")),
            ("deep brackets", "[" * 10_000),
            ("a long number", lines[at].replace(": ", ": " + "9" * 5000, 1)),
        ):
            changed = "\n".join([*lines[:at], line, *lines[at + 1 :]])
            yield case_of(
                table, f"row {row} has {what}", "error", table.packed(changed), line=at + 1, skips=1
            )
        yield case_of(table, "one JSON list", "error", table.packed("[" + ",\n".join(lines) + "]"), line=1)
        yield case_of(
            table,
            "spread over lines",
            "error",
            table.packed("\n".join(json.dumps(json.loads(line), indent=1) for line in lines)),
            line=1,
        )
    if not table.suffix.endswith(".gz"):
        data = bytearray(text.encode())
        begin = len("\n".join(lines[:at])) + 1 if at else 0
        data[begin + 1] = 0xFF
        yield case_of(table, f"row {row} is not UTF-8", "error", bytes(data), line=at + 1)
        yield case_of(table, "UTF-16", "error", text.encode("utf-16"), line=1)


def damaged(table: Table, rng: random.Random) -> Iterator[TraceCase]:
    data = table.data()
    for what, changed in (
        ("empty", b""),
        ("one byte", b"\x00"),
        ("blank", b" \n\n"),
        ("only a byte-order mark", b"\xef\xbb\xbf"),
        ("only a line end", b"\n"),
    ):
        packed = table.packed(changed.decode()) if table.suffix.endswith(".gz") else changed
        yield case_of(table, what, "error", packed)
    if table.container == "csv":
        yield case_of(table, "only a header", "error", table.packed(table.text().split("\n")[0]))
        yield case_of(
            table,
            "only a header and line ends",
            "error",
            table.packed(table.text().split("\n")[0] + "\n\n\n"),
        )
    if table.suffix.endswith(".gz"):
        yield case_of(table, "not packed", "error", table.text().encode())
        yield case_of(table, "half of it", "error", data[: len(data) // 2])
        yield case_of(table, "wrong checksum", "error", data[:-8] + bytes(8))
        yield case_of(table, "garbage after it", "error", data + b"garbage")
        yield case_of(table, "packed twice", "error", table.packed(table.text())[:10] + data)
    else:
        other = ".jsonl" if table.container == "csv" else ".csv"
        yield case_of(table, f"named {other}", "error", suffix=other)
        yield case_of(table, "without a suffix", "same", suffix="")
    yield case_of(table, "named .parquet", "error", suffix=".parquet")
    for number in range(14):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 5))):
            place = rng.randrange(len(changed))
            match rng.randrange(4):
                case 0:
                    changed[place] = rng.randrange(256)
                case 1:
                    del changed[place : place + rng.randrange(1, 30)]
                case 2:
                    changed[place:place] = rng.choice(
                        [b",", b"\n", b'"', b"-", b"9", b"\x00", b"\xff", b"}", b"\r"]
                    )
                case _:
                    del changed[max(place, 1) :]
        yield case_of(table, f"damage {number}", "ends", bytes(changed))
