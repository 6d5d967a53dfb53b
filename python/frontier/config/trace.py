"""The trace alternative of the workload section."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import BeforeValidator, Field, model_validator

from frontier.config.arrivals import Arrivals
from frontier.config.base import Section
from frontier.config.fields import (
    Duration,
    Positive,
    PositiveDuration,
    PositiveShare,
    Text,
    parse_whole,
)
from frontier.units import format_duration, parse_number

MAX_REQUESTS: Final = 20_000_000
"""Most requests of one simulation: every request keeps a row of results in memory."""

Factor = Annotated[float, Field(gt=0, le=1e9), BeforeValidator(parse_number)]


class Columns(Section):
    """Names of the columns in the file; those left out are the format's."""

    arrival: Text | None = None
    """Arrival time."""
    prompt_tokens: Text | None = None
    """Tokens of the prompt."""
    output_tokens: Text | None = None
    """Tokens generated."""
    priority: Text | None = None
    """Priority; lower is served first."""
    session: Text | None = None
    """Conversation the request belongs to."""
    hash_ids: Text | None = None
    """List of block hashes of the prompt."""
    model: Text | None = None
    """Name of the model that the request is for, where clusters serve several; left out, the format's, or
    the column called model."""
    encoder_tokens: Text | None = None
    """Tokens of a vision tower (patches) that the request brings; 0 for none."""


class Trace(Section):
    """Rows of a recorded trace: read, cut to start ... end, sampled, scaled, then cut to num_requests."""

    shorthand: ClassVar[str | None] = "path"

    path: Text
    """File (CSV, JSON lines or Parquet; text may be gzipped), or the name of a built-in trace."""
    format: Literal[
        "auto",
        "azure",
        "qwen-bailian",
        "mooncake",
        "burstgpt",
        "vidur",
        "sharegpt-replay",
        "frontier",
        "plain",
    ] = "auto"
    """How rows are written; `auto` tells it from the header, and is `plain` where that is of no known format
    but columns are given; `plain` takes all from columns."""
    columns: Columns | None = None
    """Names of the columns where they are not the format's; those left out stay the format's."""
    time_unit: Literal["s", "ms", "us", "ns", "datetime"] | None = None
    """Unit of the arrival column where it is not the format's."""
    block_size: Positive | None = None
    """Tokens per block hash where it is not the format's."""
    on_bad_row: Literal["error", "skip"] = "error"
    """A row that cannot be used stops the load, or is left out and counted."""
    on_unsorted: Literal["error", "sort"] = "error"
    """Arrivals that go back stop the load, or are sorted."""
    start: Duration = 0
    """Leave out requests that arrive earlier than this after the file's first arrival; it becomes time 0."""
    end: PositiveDuration | None = None
    """Leave out requests that arrive this long after the file's first arrival, or later."""
    sample: PositiveShare = 1.0
    """Keep each request with this probability."""
    time_scale: Factor = 1.0
    """Multiply arrival times: 2 is half the rate."""
    rate_scale: Factor = 1.0
    """Multiply the arrival rate: 2 is half the time."""
    arrivals: Arrivals | None = None
    """Arrivals instead of the trace's own; its rows are then taken in order."""
    num_requests: Annotated[int, Field(ge=1, le=MAX_REQUESTS), BeforeValidator(parse_whole)] | None = None
    """Requests to issue; more than the rows start over, which needs arrivals."""

    @model_validator(mode="after")
    def _consistent(self) -> Trace:
        if self.end is not None and self.end <= self.start:
            times = f"{format_duration(self.end)} is not after {format_duration(self.start)}"
            raise ValueError(f"end must be later than start: {times}, both after the first arrival")
        scaled = [name for name in ("time_scale", "rate_scale") if getattr(self, name) != 1]
        if len(scaled) == 2:
            raise ValueError("time_scale and rate_scale both scale the arrivals; give one of them")
        if scaled and self.arrivals is not None:
            raise ValueError(
                f"{scaled[0]} has no effect with arrivals, which replace the trace's own; remove it"
            )
        return self
