"""The smaller sections: hardware, cluster, objectives, output."""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

from frontier import units
from frontier.config.base import Section
from frontier.config.fields import (
    Flag,
    Number,
    Positive,
    PositiveDuration,
    Reference,
    Span,
    SpanField,
    Whole,
    parse_positive_duration,
    parse_whole,
)
from frontier.errors import show_value

MAX_REPLICAS: Final = 16_384
MIN_TIMELINE_INTERVAL_NS: Final = 1_000_000
DEFAULT_MAX_IMBALANCE: Final = 32


class Hardware(Section):
    """The GPU that every rank of every replica runs on."""

    shorthand: ClassVar[str | None] = "gpu"

    gpu: Reference
    """Preset name, path of a YAML file, or an inline mapping."""
    price_per_hour: Number | None = None
    """US dollars per GPU and hour instead of the list price."""
    gpus_per_node: Positive | None = None
    """GPUs that a replica uses of each node, within which they share NVLink or a host; left out, all it
    has."""
    placement: Literal["tp_pp_dp", "tp_dp_pp"] | None = None
    """Order in which the ranks of a replica fill nodes, the innermost first; left out, vLLM's (tp_pp_dp)."""


class Router(Section):
    """How requests are spread over replicas."""

    shorthand: ClassVar[str | None] = "policy"

    policy: Literal[
        "round_robin",
        "random",
        "least_outstanding",
        "power_of_two",
        "least_kv_use",
        "prefix_aware",
        "session_sticky",
    ] = "round_robin"
    """Which replica a request goes to; outstanding requests count running and waiting."""
    max_imbalance: Whole | None = None
    """Outstanding requests that a cache hit may cost at most (prefix_aware alone; left out, 32)."""


class Cluster(Section):
    """Equal replicas of the engine behind one router."""

    replicas: Annotated[int, Field(ge=1, le=MAX_REPLICAS), BeforeValidator(parse_whole)] = 1
    """Number of engine instances."""
    in_service: Whole | None = None
    """How many of them are in service at the start, the first ones; left out, all. Others are a reserve for
    `dynamics`."""
    router: Router = Router()
    """How requests are spread over them."""


class Window(Section):
    """What the metrics leave out at both ends of the run."""

    warmup: SpanField = Span(0, None)
    """Left out at the start: a time or a share of the run."""
    cooldown: SpanField = Span(0, None)
    """Left out at the end."""


class Objectives(Section):
    """Latency objectives; goodput counts the requests that meet all that are set."""

    ttft: PositiveDuration | None = None
    """Arrival to first token."""
    tpot: PositiveDuration | None = None
    """Mean time per output token after the first."""
    itl: PositiveDuration | None = None
    """Largest gap between two tokens of a request."""
    e2e: PositiveDuration | None = None
    """Arrival to last token."""
    window: Window = Window()
    """Stretch of the run that metrics cover."""


def parse_interval(value: object) -> int:
    """Read an interval of the time line."""
    interval_ns = parse_positive_duration(value)
    if interval_ns < MIN_TIMELINE_INTERVAL_NS:
        raise ValueError(f"was {show_value(value)}, must be at least 1ms")
    return interval_ns


class Output(Section):
    """What to record beside one row per request."""

    steps: Flag = False
    """Keep one wide row per engine step (44 bytes each, which long runs feel)."""
    timeline_interval: Annotated[
        int,
        BeforeValidator(parse_interval),
        PlainSerializer(units.format_duration, return_type=str),
        WithJsonSchema({"type": "string", "examples": ["1s"]}),
    ] = 1_000_000_000
    """Interval of the time line, at least 1ms."""
