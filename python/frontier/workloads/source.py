"""Reading trace files in bounded pieces: lines of text, or row groups of Parquet."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Literal

from frontier.errors import WorkloadError

if TYPE_CHECKING:
    import polars as pl

Container = Literal["csv", "jsonl", "parquet"]

CHUNK_BYTES: Final = 8 << 20
"""Text read at once."""
PARQUET_ROWS: Final = 1 << 18
"""Parquet rows read at once."""
MAX_LINE_BYTES: Final = 256 << 20
"""A longer line is no trace."""

_DAMAGED: Final = (OSError, EOFError, zlib.error)
"""What reading raises where a file is unreadable or, being packed, damaged."""

_SUFFIXES: Final[dict[str, Container]] = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}


def find_container(path: Path) -> Container:
    """Return what kind of file this is: by its suffix (`.gz` aside), else by its first bytes."""
    try:
        suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
        if known := _SUFFIXES.get(suffix.lower()):
            return known
        with _open(path) as file:
            head = file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()
    except _DAMAGED as error:
        raise _unreadable(path, error) from error
    if head.startswith(b"PAR1"):
        return "parquet"
    return "jsonl" if head.startswith(b"{") else "csv"


def read_lines(path: Path, chunk_bytes: int = CHUNK_BYTES) -> Iterator[tuple[int, str]]:
    r"""Yield (1-based number of the first line, text of whole lines) in pieces of about `chunk_bytes`.

    The text ends without a newline; lines are separated by `\n`. A `.gz` file is unpacked on the way, a UTF-8
    byte-order mark is dropped. Raises `WorkloadError` on text that is not UTF-8 or a file that is unreadable.
    """
    line = 1
    try:
        with _open(path) as file:
            rest = file.read(3).removeprefix(b"\xef\xbb\xbf")
            while block := file.read(chunk_bytes):
                head, newline, tail = block.rpartition(b"\n")
                if newline:
                    yield line, _decode(rest + head, path, line)
                    line += rest.count(b"\n") + head.count(b"\n") + 1
                    rest = tail
                else:
                    rest += block
                    _check_line(rest, path, line)
            if rest:
                yield line, _decode(rest.removesuffix(b"\n"), path, line)
    except _DAMAGED as error:
        raise _unreadable(path, error) from error


def read_parquet(path: Path, columns: list[str]) -> Iterator[tuple[int, pl.DataFrame]]:
    """Yield (1-based number of the first row, columns of a stretch of rows)."""
    import polars as pl  # noqa: PLC0415

    scan = pl.scan_parquet(path, glob=False).select(columns)
    row = 0
    # On some damaged files polars panics, which is no `Exception`.
    try:
        while len(frame := scan.slice(row, PARQUET_ROWS).collect()):
            yield row + 1, frame
            row += len(frame)
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise _unreadable(path, error) from error


def parquet_schema(path: Path) -> dict[str, pl.DataType]:
    """Return the columns of a Parquet file and their types."""
    import polars as pl  # noqa: PLC0415

    try:
        return dict(pl.scan_parquet(path, glob=False).collect_schema())
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise _unreadable(path, error) from error


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def _decode(data: bytes, path: Path, line: int) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line += data.count(b"\n", 0, error.start)
        bad = data[error.start : error.start + 4]
        message = f"is not UTF-8 text: found the bytes {bad!r}; save the trace as UTF-8"
        raise WorkloadError(message, file=str(path), line=line, value=bad) from None


def _check_line(data: bytes, path: Path, line: int) -> None:
    if len(data) > MAX_LINE_BYTES:
        message = f"the line is over {MAX_LINE_BYTES >> 20} MiB long, which no row of a trace is"
        raise WorkloadError(message, file=str(path), line=line)


def _unreadable(path: Path, error: BaseException) -> WorkloadError:
    reason = (
        error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip().split("\n")[0]
    )
    return WorkloadError(f"cannot be read: {reason}", file=str(path))
