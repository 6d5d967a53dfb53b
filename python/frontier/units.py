"""Quantities as humans write them: read into canonical units, written back readably.

| quantity | written | canonical | a bare number |
|---|---|---|---|
| duration | `50ms`, `1.5s`, `10us`, `2min`, `1h`, `1d` | int nanoseconds | refused, but for 0 |
| size | `80GiB`, `24GB`, `512B` | int bytes | an int is bytes |
| bandwidth | `3.35TB/s`, `400Gbps`, `50GiB/s` | float bytes/s | refused |
| compute rate | `989TFLOPS`, `1.4 PFLOP/s` | float FLOP/s | refused |
| rate | `12/s`, `90/min`, `12 req/s` | float per second | is per second |
| share | `10%`, `0.1` | float | is the share itself |
| count | `8192`, `8k` (8,000), `8K` (8,192) | int | is the count |

`k`, `M`, `G`, `T`, `P` are powers of 1000 and `Ki`, `Mi`, `Gi`, `Ti`, `Pi` powers of 1024; `B` is bytes and
`b` is bits. The suffixes of a count are those of vLLM's integer flags (`human_readable_int`), where a capital
letter is a power of 1024. Every function raises `ValueError` saying what was received and what is accepted;
negative numbers, NaN and infinities are never accepted.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Final, TypeVar

from frontier.errors import show_value

MAX_DURATION_NS: Final = 2**62
"""Longest duration accepted, about 146 years: sums of two still fit the simulator's clock."""

_MAX_BYTES: Final = 2**62
_MAX_COUNT: Final = 2**64
_MAX_EXPONENT: Final = 30

_QUANTITY = re.compile(
    r"""\s* (?P<number> [-+]? (?: \d[\d_]* (?:\.[\d_]*)? | \.\d[\d_]* ) (?: [eE][-+]?\d+ )? )
        \s* (?P<unit> .*? ) \s* \Z""",
    re.VERBOSE,
)

_DURATION_NS: Final[dict[str, int]] = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,  # micro sign
    "μs": 10**3,  # Greek mu
    "ms": 10**6,
    "s": 10**9,
    "sec": 10**9,
    "min": 60 * 10**9,
    "h": 3600 * 10**9,
    "d": 86400 * 10**9,
}
_DECIMAL: Final[dict[str, int]] = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_BINARY: Final[dict[str, int]] = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}
_PREFIXES: Final = {**_DECIMAL, "K": 10**3, **_BINARY}
_BYTES: Final = {f"{prefix}B": scale for prefix, scale in _PREFIXES.items()}
_BANDWIDTH: Final[dict[str, Fraction]] = {
    **{f"{p}{unit}": Fraction(n) for p, n in _PREFIXES.items() for unit in ("B/s", "Bps")},
    **{f"{p}{unit}": Fraction(n, 8) for p, n in _PREFIXES.items() for unit in ("b/s", "bps", "bit/s")},
}
_FLOPS: Final = {
    f"{p}{unit}": n for p, n in _DECIMAL.items() for unit in ("FLOPS", "FLOP/s", "FLOPs/s", "OPS", "OP/s")
}
_RATE: Final[dict[str, Fraction]] = {
    f"{noun}/{unit}": Fraction(1, seconds)
    for noun in ("", "req", "requests")
    for unit, seconds in (("s", 1), ("min", 60), ("h", 3600), ("d", 86400))
}
_COUNT: Final[dict[str, int]] = {
    "": 1,
    **{"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12},
    **{"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40},
}

_Scale = TypeVar("_Scale", int, Fraction)


def parse_duration_ns(value: object) -> int:
    """Read a duration into whole nanoseconds (half to even).

    Also takes `datetime.timedelta`. A bare 0 is zero in any unit and therefore accepted; a duration that is
    not zero but rounds to 0 ns is refused.
    """
    if isinstance(value, datetime.timedelta):
        exact = Fraction(value // datetime.timedelta(microseconds=1) * 1000)
    elif _is_number(value):
        if value != 0:
            raise ValueError(
                f"was {show_value(value)}, a time needs a unit: write '{_number(value)}ms' or such"
            )
        return 0
    else:
        number, unit = _split(value, "a duration such as '50ms'")
        if unit in ("m", "M"):
            raise ValueError(f"was {show_value(value)}, 'm' is ambiguous: write 'min' or 'ms'")
        exact = number * _scale(value, unit, _DURATION_NS, "ns, us, ms, s, min, h, d")
    _not_negative(value, exact)
    nanoseconds = round(exact)
    if exact and not nanoseconds:
        raise ValueError(f"was {show_value(value)}, shorter than the clock's tick of 1 ns")
    if nanoseconds > MAX_DURATION_NS:
        raise ValueError(f"was {show_value(value)}, longer than 146 years")
    return nanoseconds


def parse_bytes(value: object) -> int:
    """Read a size into whole bytes; a bare int is bytes."""
    if _is_number(value):
        exact = _exact(value)
    else:
        number, unit = _split(value, "a size such as '80GiB'")
        if unit in _PREFIXES and unit:
            raise ValueError(f"was {show_value(value)}, write '{unit}B' for bytes")
        exact = number * _scale(value, unit, _BYTES, "B, kB, MB, GB, TB or KiB, MiB, GiB, TiB")
    _not_negative(value, exact)
    if exact.denominator != 1:
        raise ValueError(f"was {show_value(value)}, not a whole number of bytes")
    if exact > _MAX_BYTES:
        raise ValueError(f"was {show_value(value)}, more than 4 EiB")
    return int(exact)


def parse_bandwidth(value: object) -> float:
    """Read a bandwidth into bytes per second; `Gbps` is bits, `GB/s` bytes."""
    return _with_unit(value, _BANDWIDTH, "a bandwidth such as '3.35TB/s'", "GB/s, GiB/s, TB/s, Gbps, ...")


def parse_flops(value: object) -> float:
    """Read a compute rate into operations per second."""
    return _with_unit(value, _FLOPS, "a compute rate such as '989TFLOPS'", "GFLOPS, TFLOPS, PFLOPS, TOPS")


def parse_rate(value: object) -> float:
    """Read a rate into events per second; a bare number is per second, as in vLLM's `--request-rate`."""
    if _is_number(value):
        exact = _exact(value)
    else:
        number, unit = _split(value, "a rate such as '12/s'")
        exact = number * _scale(value, unit.replace(" ", "") or "/s", _RATE, "/s, /min, /h")
    _not_negative(value, exact)
    return float(exact)


def parse_share(value: object) -> float:
    """Read a share in [0, 1]: `0.1` or `10%`."""
    if _is_number(value):
        exact = _exact(value)
    else:
        number, unit = _split(value, "a share such as '10%'")
        if unit not in ("", "%"):
            raise ValueError(f"was {show_value(value)}, a share is written '10%' or 0.1")
        exact = number / 100 if unit else number
    _not_negative(value, exact)
    if exact > 1:
        raise ValueError(f"was {show_value(value)}, a share is at most 1 (100%)")
    return float(exact)


def parse_number(value: object) -> float:
    """Read a plain number of zero or more, without a unit."""
    if not _is_number(value):
        raise ValueError(f"was {show_value(value)}, must be a number")
    exact = _exact(value)
    _not_negative(value, exact)
    return float(exact)


def parse_count(value: object) -> int:
    """Read a whole number; `8k` is 8,000 and `8K` 8,192, as vLLM's integer flags take them."""
    if _is_number(value):
        exact = _exact(value)
    else:
        number, unit = _split(value, "a whole number such as 8192 or '8k'")
        exact = number * _scale(value, unit, _COUNT, "k, m, g (powers of 1000) or K, M, G (powers of 1024)")
    _not_negative(value, exact)
    if exact.denominator != 1:
        raise ValueError(f"was {show_value(value)}, must be a whole number")
    if exact > _MAX_COUNT:
        raise ValueError(f"was {show_value(value)}, too large")
    return int(exact)


def format_duration(nanoseconds: int) -> str:
    """Write a duration in the largest unit that keeps it exact in few digits: `90s`, `1.5ms`, `2h`."""
    if nanoseconds == 0:
        return "0s"
    for unit, least in (("d", 1), ("h", 1), ("min", 2)):
        if nanoseconds % _DURATION_NS[unit] == 0 and nanoseconds >= least * _DURATION_NS[unit]:
            return f"{nanoseconds // _DURATION_NS[unit]}{unit}"
    unit = next(u for u in ("s", "ms", "us", "ns") if nanoseconds >= _DURATION_NS[u])
    return f"{_plain(Fraction(nanoseconds, _DURATION_NS[unit]))}{unit}"


def format_bytes(count: int) -> str:
    """Write a size exactly, in the unit that is shortest (`80GiB`, `24GB`, `1.5KiB`)."""
    if count == 0:
        return "0B"
    return _shortest(
        Fraction(count), {u: Fraction(n) for u, n in _BYTES.items() if not u.startswith("K") or "i" in u}
    )


def format_bandwidth(bytes_per_s: float) -> str:
    """Write a bandwidth so that it reads back to the same float (`3.35TB/s`)."""
    return _round_trip(bytes_per_s, {f"{p}B/s": n for p, n in _DECIMAL.items()}, parse_bandwidth)


def format_flops(flops_per_s: float) -> str:
    """Write a compute rate so that it reads back to the same float (`989TFLOPS`)."""
    return _round_trip(flops_per_s, {f"{p}FLOPS": n for p, n in _DECIMAL.items()}, parse_flops)


def format_rate(per_s: float) -> str:
    """Write a rate so that it reads back to the same float (`12/s`)."""
    return f"{_plain(Fraction(repr(per_s)))}/s"


def _with_unit(value: object, units: Mapping[str, _Scale], example: str, allowed: str) -> float:
    if _is_number(value):
        raise ValueError(f"was {show_value(value)}, needs a unit: {example}")
    number, unit = _split(value, example)
    exact = number * _scale(value, unit, units, allowed)
    _not_negative(value, exact)
    return float(exact)


def _split(value: object, expected: str) -> tuple[Fraction, str]:
    if not isinstance(value, str):
        raise ValueError(f"was {show_value(value)}, must be {expected}")
    match = _QUANTITY.match(value) if len(value) <= 64 else None
    if match is None:
        raise ValueError(f"was {show_value(value)}, must be {expected}")
    decimal = Decimal(match["number"].replace("_", ""))
    # Bound before Fraction: '1e999999999s' would otherwise become an integer of a billion digits.
    if decimal and abs(decimal.adjusted()) > _MAX_EXPONENT:
        raise ValueError(f"was {show_value(value)}, out of range")
    return Fraction(decimal), match["unit"]


def _scale(value: object, unit: str, units: Mapping[str, _Scale], allowed: str) -> _Scale:
    if unit in units:
        return units[unit]
    if not unit:
        raise ValueError(f"was {show_value(value)}, needs a unit: {allowed}")
    folded = [known for known in units if known.casefold() == unit.casefold()]
    hint = f"; did you mean '{folded[0]}'?" if folded else ""
    raise ValueError(f"was {show_value(value)}, unit '{unit}' is unknown{hint} (allowed: {allowed})")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _exact(value: object) -> Fraction:
    assert isinstance(value, int | float)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"was {value}, must be finite")
    # Through the shortest decimal, so that 0.1 is a tenth and not its binary neighbour.
    return Fraction(repr(value)) if isinstance(value, float) else Fraction(value)


def _not_negative(value: object, exact: Fraction) -> None:
    if exact < 0:
        raise ValueError(f"was {show_value(value)}, must not be negative")


def _number(value: object) -> str:
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def _plain(value: Fraction) -> str:
    """Return the decimal digits of a fraction whose denominator divides a power of ten."""
    digits = 0
    while (value * 10**digits).denominator != 1:
        digits += 1
        if digits > 400:
            raise ValueError("not a decimal fraction")
    scaled = int(value * 10**digits)
    if not digits:
        return str(scaled)
    text = str(scaled).rjust(digits + 1, "0")
    return f"{text[:-digits]}.{text[-digits:]}"


def _shortest(value: Fraction, units: Mapping[str, Fraction]) -> str:
    texts = [f"{_plain(value / scale)}{unit}" for unit, scale in units.items()]
    return min(texts, key=len)


def _round_trip(value: float, units: Mapping[str, int], parse: Callable[[object], float]) -> str:
    exact = Fraction(repr(value))
    text = min((f"{_plain(exact / scale)}{unit}" for unit, scale in units.items()), key=len)
    if parse(text) != value:  # e.g. below the range of the written form
        raise ValueError(f"was {value}, cannot be written exactly")
    return text
