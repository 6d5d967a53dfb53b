"""Reading one value of a trace: numbers of tokens, arrival times, priorities, sessions, block hashes.

Each reader takes a value as it stands in the file (the string of a CSV cell, a JSON value, None where it is
missing) and returns an integer, or raises `BadValueError`. These functions are the only definition of what is
accepted; the column readers in `columns` let plain digits through quickly and hand everything else to them.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Final

from frontier.errors import nearest_name, show_value

MAX_TOKENS: Final = 2**32 - 1
"""Most tokens of a prompt and its output together."""
MAX_ARRIVAL_NS: Final = 2**62
"""Latest arrival, about 146 years."""
MAX_HASH: Final = 2**64 - 1

TIME_UNITS: Final[dict[str, int]] = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
"""Nanoseconds per unit of an arrival column."""
DATETIME: Final = "datetime"
"""The unit of arrival columns that hold dates such as `2024-05-10 00:00:00.009930+00:00` (UTC by default)."""

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_DATETIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,9})\d*)?\s?(Z|[+-]\d\d:?\d\d)?",
    re.ASCII | re.IGNORECASE,
)
_MAX_DIGITS: Final = 200
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class BadValueError(ValueError):
    """A value that cannot be used. `reason` names the kind of defect, the message says what is allowed."""

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        super().__init__(message)


def read_tokens(value: object) -> int:
    """Return a number of tokens, at least 1. Whole numbers written as decimals (`374.0`) are accepted."""
    return _whole(value, 1, MAX_TOKENS, f"a whole number of tokens in 1 ... {MAX_TOKENS}")


def read_tokens_or_zero(value: object) -> int:
    """Return a number of tokens, 0 included (where a format marks failed requests so)."""
    return _whole(value, 0, MAX_TOKENS, f"a whole number of tokens in 0 ... {MAX_TOKENS}")


def read_priority(value: object) -> int:
    """Return a priority, a 32-bit signed integer."""
    return _whole(value, -(2**31), 2**31 - 1, f"a whole number in {-(2**31)} ... {2**31 - 1}")


def read_hash(value: object) -> int:
    """Return a block hash, a 64-bit unsigned integer."""
    return _whole(value, 0, MAX_HASH, f"whole numbers in 0 ... {MAX_HASH}")


def read_model(value: object, models: Sequence[str]) -> int:
    """Return the number of a model in `models`, given its name."""
    allowed = f"one of {', '.join(models)}"
    if value is None or (isinstance(value, str) and not value.strip()):
        raise BadValueError("missing", f"is missing, must be {allowed}")
    name = str(value).strip()
    if isinstance(value, bool) or name not in models:
        near = nearest_name(name, models)
        hint = f"; did you mean '{near}'?" if near else ""
        raise BadValueError("not served", f"was {show_value(value)}, must be {allowed}{hint}")
    return list(models).index(name)


def read_time(value: object, unit_ns: int) -> int:
    """Return an arrival in ns, to the nearest (half to even), of a number of units of `unit_ns` ns."""
    unit = next(name for name, ns in TIME_UNITS.items() if ns == unit_ns)
    allowed = f"a number of {unit} that is not negative and at most 2^62 ns"
    number = _number(value, allowed)
    if number < 0:
        raise BadValueError("negative", f"was {show_value(value)}, must be {allowed}")
    # Products of decimals keep 28 digits; times have at most 19 before the point.
    if number > MAX_ARRIVAL_NS or (nanoseconds := round(number * unit_ns)) > MAX_ARRIVAL_NS:
        raise BadValueError("out of range", f"was {show_value(value)}, must be {allowed}")
    return nanoseconds


def read_datetime(value: object) -> int:
    """Return an arrival in ns since 1970 of a date and time, UTC unless it carries an offset."""
    allowed = "a date and time such as 2024-05-10 00:00:00.009930+00:00, in 1970 ... 2115"
    if value is None or value == "":
        raise BadValueError("missing", f"is missing, must be {allowed}")
    match = _DATETIME.fullmatch(str(value).strip())
    try:
        if match is None:
            raise ValueError
        date, time, fraction, zone = match.groups()
        moment = datetime.datetime.fromisoformat(f"{date}T{time}{(zone or 'Z').upper()}")
    except ValueError:
        raise BadValueError("not a date", f"was {show_value(value)}, must be {allowed}") from None
    since = moment - _EPOCH
    nanoseconds = (since.days * 86400 + since.seconds) * 10**9 + int((fraction or "0").ljust(9, "0"))
    if not 0 <= nanoseconds <= MAX_ARRIVAL_NS:
        raise BadValueError("out of range", f"was {show_value(value)}, must be {allowed}")
    return nanoseconds


def _whole(value: object, least: int, most: int, allowed: str) -> int:
    is_int = isinstance(value, int) and not isinstance(value, bool)
    number: int | Decimal = value if is_int else _number(value, allowed)  # type: ignore[assignment]
    if not least <= number <= most:
        reason = "negative" if number < 0 and least >= 0 else "zero" if number == 0 else "out of range"
        raise BadValueError(reason, f"was {show_value(value)}, must be {allowed}")
    if number != (whole := int(number)):
        raise BadValueError("not a whole number", f"was {show_value(value)}, must be {allowed}")
    return whole


def _number(value: object, allowed: str) -> Decimal:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise BadValueError("missing", f"is missing, must be {allowed}")
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        text = str(value).strip()
        if len(text) <= _MAX_DIGITS and _NUMBER.fullmatch(text):
            return Decimal(text)
    raise BadValueError("not a number", f"was {show_value(value)}, must be {allowed}")
