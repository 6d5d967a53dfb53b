"""Small valid traces in every format, as tables that can be changed and written again."""

import datetime
import gzip
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import polars as pl

NUM_ROWS: Final = 14
MAX_MODEL_LEN: Final = 1024
BLOCK_SIZE: Final = 16
NUM_BLOCKS: Final = 64
"""Blocks of the pool, the null block included: requests of 1010 ... 1024 tokens exceed it, not the length."""

Role = str


@dataclass(frozen=True)
class Table:
    """A trace: rows of values by column, how they are written, and what to tell `load_trace`.

    Attributes:
        name: for messages.
        suffix: of the file, `.gz` included where it is packed.
        columns: their names.
        rows: one list of values per row.
        roles: column of each role (`arrival`, `prompt_tokens`, ...).
        options: keyword arguments of `load_trace`.
        hashes: (tokens per block hash, allowed numbers of hashes for a partial block), None without hashes.
    """

    name: str
    suffix: str
    columns: list[str]
    rows: list[list[Any]]
    roles: Mapping[Role, str]
    options: Mapping[str, Any] = field(default_factory=dict)
    hashes: tuple[int, str] | None = None

    @property
    def container(self) -> str:
        """`csv`, `jsonl` or `parquet`."""
        return self.suffix.split(".")[1]

    def line_of(self, row: int) -> int:
        """Return the 1-based line (of Parquet: the row) that a row is written on."""
        return row + (2 if self.container == "csv" else 1)

    def column_of(self, role: Role) -> int:
        """Return the index of the column of a role."""
        return self.columns.index(self.roles[role])

    def with_cell(self, row: int, role: Role, value: Any) -> "Table":
        """Return the table with one value replaced."""
        rows = [list(cells) for cells in self.rows]
        rows[row][self.column_of(role)] = value
        return replace(self, rows=rows)

    def data(self) -> bytes:
        """Return the bytes of the file."""
        if self.container == "parquet":
            file = io.BytesIO()
            self.frame().write_parquet(file)
            return file.getvalue()
        return self.packed(self.text())

    def packed(self, text: str) -> bytes:
        """Return the bytes of a file with this text."""
        return gzip.compress(text.encode(), mtime=0) if self.suffix.endswith(".gz") else text.encode()

    def text(self) -> str:
        """Return the table as CSV or JSON lines."""
        if self.container == "csv":
            lines = [",".join(self.columns), *(",".join(map(str, row)) for row in self.rows)]
        else:
            lines = [json.dumps(dict(zip(self.columns, row, strict=True))) for row in self.rows]
        return "\n".join(lines) + "\n"

    def frame(self) -> pl.DataFrame:
        """Return the table as a frame."""
        return pl.DataFrame(
            self.rows, schema=self.columns, orient="row", strict=False, infer_schema_length=None
        )


_ARRIVALS_MS: Final = [0, 40, 40, 95, 130, 180, 260, 261, 300, 350, 350, 420, 500, 640]
_PROMPTS: Final = [33, 64, 17, 100, 1, 48, 80, 31, 32, 7, 120, 15, 16, 57]
_OUTPUTS: Final = [5, 3, 8, 1, 2, 6, 4, 9, 3, 5, 2, 7, 1, 4]
_EPOCH: Final = datetime.datetime(2023, 11, 16, 18, 17, 3)


def _hashes(row: int, block: int, *, partial: bool) -> list[int]:
    tokens = _PROMPTS[row]
    count = -(-tokens // block) if partial else tokens // block
    return [100 * (row % 3) + i for i in range(count)]


def _table(name: str, suffix: str, columns: Mapping[str, tuple[str | None, list[Any]]], **rest: Any) -> Table:
    """Make a table of (role, values) by column."""
    rows = [list(cells) for cells in zip(*(values for _, values in columns.values()), strict=True)]
    roles = {role: column for column, (role, _) in columns.items() if role}
    return Table(name, suffix, list(columns), rows, roles, **rest)


def _counts() -> tuple[list[int], list[int]]:
    return list(_PROMPTS), list(_OUTPUTS)


def tables() -> list[Table]:
    """Return one valid trace per format and container."""
    index = range(NUM_ROWS)
    prompts, outputs = _counts()
    seconds = [f"{ms / 1000:.3f}" for ms in _ARRIVALS_MS]
    nanoseconds = [ms * 10**6 for ms in _ARRIVALS_MS]
    moments = [f"{_EPOCH + datetime.timedelta(milliseconds=ms):%Y-%m-%d %H:%M:%S.%f}0" for ms in _ARRIVALS_MS]
    mooncake = {
        "timestamp": ("arrival", list(_ARRIVALS_MS)),
        "input_length": ("prompt_tokens", prompts),
        "output_length": ("output_tokens", outputs),
        "hash_ids": ("hash_ids", [_hashes(i, 512, partial=True) for i in index]),
    }
    joined = ["|".join(map(str, _hashes(i, 16, partial=False))) for i in index]
    own = {
        "arrival_ns": ("arrival", nanoseconds),
        "prompt_tokens": ("prompt_tokens", prompts),
        "output_tokens": ("output_tokens", outputs),
        "priority": ("priority", [i % 3 for i in index]),
        "session": ("session", [f"s{i % 4}" for i in index]),
    }
    plain = {
        "when": ("arrival", list(_ARRIVALS_MS)),
        "in": ("prompt_tokens", prompts),
        "note": (None, [f"n{i}" for i in index]),
        "out": ("output_tokens", outputs),
        "urgency": ("priority", [i % 5 - 2 for i in index]),
        "user": ("session", [f"u{i % 3}" for i in index]),
    }
    named = {
        "format": "plain",
        "time_unit": "ms",
        "columns": {role: name for name, (role, _) in plain.items() if role},
    }
    blocks = {"blocks": ("hash_ids", [_hashes(i, 8, partial=i % 2 == 0) for i in index])}
    hashed = {**named, "columns": {**named["columns"], "hash_ids": "blocks"}, "block_size": 8}
    return [
        _table("azure", ".csv", {
            "TIMESTAMP": ("arrival", moments),
            "ContextTokens": ("prompt_tokens", prompts),
            "GeneratedTokens": ("output_tokens", outputs),
        }),
        _table("qwen-bailian", ".jsonl", {
            "chat_id": ("chat", list(index)),
            "parent_chat_id": ("parent", [i - 4 if i > 6 else -1 for i in index]),
            "timestamp": ("arrival", [ms / 1000 for ms in _ARRIVALS_MS]),
            "input_length": ("prompt_tokens", prompts),
            "output_length": ("output_tokens", outputs),
            "type": (None, ["text"] * NUM_ROWS),
            "turn": (None, [1] * NUM_ROWS),
            "hash_ids": ("hash_ids", [_hashes(i, 16, partial=i % 2 == 0) for i in index]),
        }, hashes=(16, "either")),
        _table("mooncake", ".jsonl", mooncake, hashes=(512, "hashed")),
        _table("mooncake", ".jsonl.gz", mooncake, hashes=(512, "hashed")),
        _table("burstgpt", ".csv", {
            "Timestamp": ("arrival", [f"{ms / 1000:.1f}" for ms in sorted(_ARRIVALS_MS)]),
            "Session ID": ("session", [f"{i % 3}" for i in index]),
            "Model": (None, ["ChatGPT"] * NUM_ROWS),
            "Request tokens": ("prompt_tokens", prompts),
            "Response tokens": ("output_tokens", outputs),
            "Total tokens": (None, [p + o for p, o in zip(prompts, outputs, strict=True)]),
            "Log Type": (None, ["Conversation log"] * NUM_ROWS),
        }),
        _table("vidur", ".csv", {
            "arrived_at": ("arrival", seconds),
            "num_prefill_tokens": ("prompt_tokens", prompts),
            "num_decode_tokens": ("output_tokens", outputs),
        }),
        _table("sharegpt-replay", ".csv", {
            "arrival_s": ("arrival", seconds),
            "num_prompt_tokens": ("prompt_tokens", prompts),
            "num_output_tokens": ("output_tokens", outputs),
            "block_hash_ids_16": ("hash_ids", joined),
        }, hashes=(16, "left out")),
        *(_table("frontier", suffix, own) for suffix in (".csv", ".csv.gz", ".jsonl", ".parquet")),
        _table("plain", ".csv", plain, options=named),
        _table("plain", ".jsonl", {**plain, **blocks}, options=hashed, hashes=(8, "either")),
        _table("plain", ".parquet", {**plain, **blocks}, options=hashed, hashes=(8, "either")),
    ]  # fmt: skip
