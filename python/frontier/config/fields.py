"""Types of scenario fields: what is read and kept, how it is written back, what the JSON Schema says."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Final, NamedTuple

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from frontier import units
from frontier.errors import show_value

U32_MAX: Final = 2**32 - 1
U64_MAX: Final = 2**64 - 1
MIN_RATE_PER_S: Final = 1e-9
MAX_RATE_PER_S: Final = 1e9
_MAX_DEPTH: Final = 20
_SURROGATE: Final = re.compile("[\ud800-\udfff]")

_NUMBER = r"[0-9][0-9_]*(\.[0-9]*)?([eE][-+]?[0-9]+)?"
_DURATION_SCHEMA: Final[dict[str, Any]] = {
    "anyOf": [
        {"type": "string", "pattern": rf"^\s*{_NUMBER}\s*(ns|us|µs|ms|s|sec|min|h|d)\s*$"},
        {"const": 0},
    ],
    "description": "A time with its unit, kept as whole nanoseconds.",
    "examples": ["50ms", "1.5s", "10us"],
}
_RATE_SCHEMA: Final[dict[str, Any]] = {
    "anyOf": [
        {"type": "number", "minimum": 0},
        {"type": "string", "pattern": rf"^\s*{_NUMBER}\s*((req|requests)?\s*/\s*(s|min|h|d))?\s*$"},
    ],
    "description": "A rate; a bare number is per second.",
    "examples": ["12/s", "90/min", 12],
}
_SHARE_SCHEMA: Final[dict[str, Any]] = {
    "anyOf": [
        {"type": "number", "minimum": 0, "maximum": 1},
        {"type": "string", "pattern": rf"^\s*{_NUMBER}\s*%\s*$"},
    ],
    "description": "A share between 0 and 1, or a percentage.",
    "examples": [0.92, "92%"],
}


class Span(NamedTuple):
    """A stretch of a run: a time, or a share of the whole. Exactly one of the two is set."""

    duration_ns: int | None
    share: float | None

    def __str__(self) -> str:
        if self.duration_ns is not None:
            return units.format_duration(self.duration_ns)
        return format_percent(self.share or 0.0)


def format_percent(share: float) -> str:
    """Write a share as a percentage that reads back to the same float."""
    for digits in range(18):
        text = f"{share * 100:.{digits}f}%"
        if units.parse_share(text) == share:
            return text
    raise ValueError(f"was {share}, cannot be written exactly")


def parse_span(value: object) -> Span:
    """Read `30s` or `10%`."""
    if isinstance(value, Span):
        return value
    if isinstance(value, str) and value.rstrip().endswith("%"):
        share = units.parse_share(value)
        if share >= 1:
            raise ValueError(f"was {show_value(value)}, must be less than the whole run")
        return Span(None, share)
    return Span(units.parse_duration_ns(value), None)


def parse_positive_duration(value: object) -> int:
    """Read a duration longer than zero."""
    duration_ns = units.parse_duration_ns(value)
    if duration_ns == 0:
        raise ValueError(f"was {show_value(value)}, must be longer than 0")
    return duration_ns


def parse_whole(value: object) -> int:
    """Read a plain whole number, without a suffix."""
    if isinstance(value, str):
        raise ValueError(f"was {show_value(value)}, must be a whole number")
    return units.parse_count(value)


def parse_text(value: object) -> str:
    """Read a text that is not empty."""
    if not isinstance(value, str):
        raise ValueError(f"was {show_value(value)}, must be text")
    if not value.strip():
        raise ValueError(f"was {show_value(value)}, must not be empty")
    if _SURROGATE.search(value):
        raise ValueError(f"was {show_value(value)}, has half of a surrogate pair, which no file can hold")
    return value


def parse_flag(value: object) -> bool:
    """Read true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"was {show_value(value)}, must be true or false")
    return value


def parse_reference(value: object) -> str | dict[str, Any]:
    """Read a preset name, a path, or an inline mapping of plain values."""
    if isinstance(value, dict):
        if not value:
            raise ValueError("was an empty mapping, must be a preset name, a path or an inline mapping")
        _check_plain(value, ())
        return value
    if isinstance(value, str):
        return parse_text(value)
    raise ValueError(f"was {show_value(value)}, must be a preset name, a path or an inline mapping")


def parse_plain_mapping(value: object) -> dict[str, Any]:
    """Read a mapping of plain values, which may be empty."""
    if not isinstance(value, dict):
        raise ValueError(f"was {show_value(value)}, must be a mapping")
    _check_plain(value, ())
    return value


def _check_plain(value: object, at: tuple[str | int, ...]) -> None:
    """Refuse what YAML and JSON cannot both write: odd keys and types, numbers that are not finite.

    `at` is where the value lies below the field.
    """
    message = None
    if len(at) > _MAX_DEPTH:
        message, at = f"is nested more than {_MAX_DEPTH} deep", ()
    elif isinstance(value, dict):
        odd = [key for key in value if not isinstance(key, str) or _SURROGATE.search(key)]
        if odd:
            message = f"has the key {show_value(odd[0])}, keys must be text"
        else:
            for key, item in value.items():
                _check_plain(item, (*at, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_plain(item, (*at, index))
    elif isinstance(value, float) and not math.isfinite(value):
        message = f"was {value}, must be finite"
    elif isinstance(value, str) and _SURROGATE.search(value):
        message = f"was {show_value(value)}, has half of a surrogate pair, which no file can hold"
    elif value is not None and not isinstance(value, bool | int | float | str):
        message = f"was {show_value(value)}, must be made of plain values"
    if message is not None:
        raise PydanticCustomError("section", "{message}", {"message": message, "below": at})


Flag = Annotated[bool, BeforeValidator(parse_flag)]
Text = Annotated[str, BeforeValidator(parse_text)]
Reference = Annotated[
    str | dict[str, Any],
    PlainValidator(parse_reference),
    WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1}, {"type": "object", "minProperties": 1}]}),
]

Whole = Annotated[int, Field(ge=0, le=U32_MAX), BeforeValidator(parse_whole)]
Positive = Annotated[int, Field(ge=1, le=U32_MAX), BeforeValidator(parse_whole)]
Seed = Annotated[int, Field(ge=0, le=U64_MAX), BeforeValidator(parse_whole)]
Number = Annotated[float, Field(ge=0), BeforeValidator(units.parse_number)]


def _tokens_schema(least: int) -> dict[str, Any]:
    return {
        "anyOf": [
            {"type": "integer", "minimum": least, "maximum": U32_MAX},
            {"type": "string", "pattern": rf"^\s*{_NUMBER}\s*[kKmMgG]?\s*$"},
        ],
        "description": "Tokens; '8k' is 8000 and '8K' 8192, as in vLLM's flags.",
    }


Tokens = Annotated[
    int, Field(ge=1, le=U32_MAX), BeforeValidator(units.parse_count), WithJsonSchema(_tokens_schema(1))
]
TokensOrZero = Annotated[
    int, Field(ge=0, le=U32_MAX), BeforeValidator(units.parse_count), WithJsonSchema(_tokens_schema(0))
]

_write_duration = PlainSerializer(units.format_duration, return_type=str)
_write_rate = PlainSerializer(units.format_rate, return_type=str)
Duration = Annotated[
    int, BeforeValidator(units.parse_duration_ns), _write_duration, WithJsonSchema(_DURATION_SCHEMA)
]
PositiveDuration = Annotated[
    int, BeforeValidator(parse_positive_duration), _write_duration, WithJsonSchema(_DURATION_SCHEMA)
]
Rate = Annotated[
    float,
    Field(le=MAX_RATE_PER_S),
    BeforeValidator(units.parse_rate),
    _write_rate,
    WithJsonSchema(_RATE_SCHEMA),
]
PositiveRate = Annotated[
    float,
    Field(ge=MIN_RATE_PER_S, le=MAX_RATE_PER_S),
    BeforeValidator(units.parse_rate),
    _write_rate,
    WithJsonSchema(_RATE_SCHEMA),
]
Share = Annotated[float, BeforeValidator(units.parse_share), WithJsonSchema(_SHARE_SCHEMA)]
PositiveShare = Annotated[
    float, Field(gt=0), BeforeValidator(units.parse_share), WithJsonSchema(_SHARE_SCHEMA)
]
ShareBelowOne = Annotated[
    float, Field(lt=1), BeforeValidator(units.parse_share), WithJsonSchema(_SHARE_SCHEMA)
]
SpanField = Annotated[
    Span,
    PlainValidator(parse_span),
    PlainSerializer(str, return_type=str),
    WithJsonSchema(
        {
            "anyOf": [
                *_DURATION_SCHEMA["anyOf"],
                {"type": "string", "pattern": rf"^\s*{_NUMBER}\s*%\s*$"},
            ],
            "description": "A time, or a share of the run.",
            "examples": ["30s", "10%"],
        }
    ),
]
