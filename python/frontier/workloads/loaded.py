"""A trace in memory: compact numpy columns and a report of how they were read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from frontier.errors import WorkloadError, show_value

if TYPE_CHECKING:
    from frontier import _frontier

NO_SESSION: Final = 2**32 - 1
"""In the session column: the request belongs to no session."""
OUTPUT_STREAM_BASE: Final = 1 << 62
"""Stream OUTPUT_STREAM_BASE + i is the output of request i; streams below are the trace's own."""


@dataclass(frozen=True)
class LoadReport:
    """What became of the rows of a file.

    Attributes:
        file: path, or the name of a built-in trace.
        format: name of the format.
        rows_read: rows in the file, header and blank lines not counted.
        rows_skipped: rows left out, by reason; all others are in the trace.
        arrival_offset_ns: arrival of the first request in the file's own time, which became time 0.
        sorted: whether rows had to be sorted by arrival.

    """

    file: str
    format: str
    rows_read: int
    rows_skipped: Mapping[str, int] = field(default_factory=dict)
    arrival_offset_ns: int = 0
    sorted: bool = False

    def __str__(self) -> str:
        skipped = sum(self.rows_skipped.values())
        text = f"{self.file} ({self.format}): {self.rows_read - skipped} of {self.rows_read} rows"
        if skipped:
            reasons = ", ".join(f"{count} x {reason}" for reason, count in self.rows_skipped.items())
            text += f"; skipped {skipped} ({reasons})"
        return text + ("; sorted by arrival" if self.sorted else "")


@dataclass(frozen=True, eq=False)
class LoadedTrace:
    """Requests in order of arrival. All columns have one entry per request, but those of segments.

    A prompt is a list of segments (stream, start, length); the identity of a token is (stream, position), and
    two prompts share a prefix exactly as far as their token identities agree. Request i owns the segments
    from `segment_offsets[i]` up to `segment_offsets[i + 1]`; one without any has content of its own.

    Attributes:
        arrival_ns: int64 `[n]`, ascending, not negative.
        prompt_tokens: uint32 `[n]`, at least 1.
        output_tokens: uint32 `[n]`, at least 1; with the prompt at most 2^32 - 1.
        priority: int32 `[n]` or None (all 0); lower is served first.
        session: uint32 `[n]` or None; `NO_SESSION` for none.
        segment_offsets: uint64 `[n + 1]` or None, as are the three columns of segments.
        segment_stream: uint64, below 2^62, or OUTPUT_STREAM_BASE + an earlier request.
        segment_start: uint32, position of the first token in its stream.
        segment_length: uint32, at least 1.
        encoder_tokens: uint32 `[n]` or None (all 0): what is encoded before the prompt, in
            tokens of the encoder.
        report: how the trace was read.
        model: uint16 `[n]` or None (all for the one that is served), number of the model in `models`.
        models: names of models.

    """

    arrival_ns: NDArray[np.int64]
    prompt_tokens: NDArray[np.uint32]
    output_tokens: NDArray[np.uint32]
    priority: NDArray[np.int32] | None = None
    session: NDArray[np.uint32] | None = None
    segment_offsets: NDArray[np.uint64] | None = None
    segment_stream: NDArray[np.uint64] | None = None
    segment_start: NDArray[np.uint32] | None = None
    segment_length: NDArray[np.uint32] | None = None
    encoder_tokens: NDArray[np.uint32] | None = None
    report: LoadReport = field(default_factory=lambda: LoadReport("", "", 0))
    model: NDArray[np.uint16] | None = None
    models: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.arrival_ns)

    @property
    def duration_ns(self) -> int:
        """Return the last arrival minus the first."""
        return int(self.arrival_ns[-1] - self.arrival_ns[0])

    @property
    def rate_per_s(self) -> float:
        """Return the mean arrival rate, gaps over the time they take; NaN if all arrive at once."""
        return (len(self) - 1) / (self.duration_ns / 1e9) if self.duration_ns else float("nan")

    @property
    def nbytes(self) -> int:
        """Return the memory that the columns take, in bytes."""
        columns = (getattr(self, each.name) for each in fields(self))
        return sum(column.nbytes for column in columns if isinstance(column, np.ndarray))

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the trace to a Parquet file that `load_trace` reads and scenarios may name; return its path.

        The columns are those of the format `frontier`. Reading makes the first arrival time 0 and numbers
        sessions by first appearance.

        Raises:
            WorkloadError: the suffix is not `.parquet`, the file cannot be written, or prompts share content,
                which this format does not hold.
        """
        import polars as pl  # noqa: PLC0415 - slow to import

        file = Path(path)
        if file.suffix != ".parquet":
            message = f"the suffix was {show_value(file.suffix)}, must be '.parquet'"
            raise WorkloadError(message, file=str(file), value=file.suffix)
        if self.segment_offsets is not None:
            message = "the prompts of the trace share content, which the format 'frontier' does not hold"
            raise WorkloadError(f"{message}; name the file that it was loaded from", file=str(file))
        columns = {
            "arrival_ns": self.arrival_ns,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "priority": self.priority,
            "session": self.session,
            "model": None if self.model is None else np.array(self.models)[self.model],
            "encoder_tokens": self.encoder_tokens,
        }
        frame = pl.DataFrame({name: column for name, column in columns.items() if column is not None})
        try:
            frame.write_parquet(file)
        except OSError as error:
            reason = error.strerror or str(error).split("\n")[0]
            raise WorkloadError(f"cannot be written: {reason}", file=str(file)) from error
        return file

    def to_trace(self) -> _frontier.Trace:
        """Return the trace as the simulator takes it: its own copy of the columns, checked again."""
        from frontier import _frontier  # noqa: PLC0415 - loading and transforming work without the extension

        return _frontier.Trace(
            self.arrival_ns,
            self.prompt_tokens,
            self.output_tokens,
            priority=self.priority,
            session=self.session,
            segment_offsets=self.segment_offsets,
            segment_stream=self.segment_stream,
            segment_start=self.segment_start,
            segment_length=self.segment_length,
            model=self.model,
            encoder_tokens=self.encoder_tokens,
        )
