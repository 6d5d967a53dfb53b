"""What the step times of a run rest on: GPU time by provenance, and what lay outside the measured ranges.

- `measured`: this shape, this kernel and this kind of batch were profiled on this GPU, and the batch lies
  inside the measured ranges;
- `interpolated`: all features lie inside them, but another shape of the same kernel was profiled on this GPU,
  or another kind of batch: a mixed batch put together from its parts, or unequal lengths corrected by what
  was learned on other GPUs;
- `extrapolated`: some feature lies outside the range that was measured;
- `unmeasured`: nothing was measured on this GPU: a predictor of other GPUs, or the bound alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

from frontier.errors import InvariantError, show_value

if TYPE_CHECKING:
    import polars as pl

PROVENANCES = ("measured", "interpolated", "extrapolated", "unmeasured")
"""Where a time comes from, best first."""

DOUBTFUL_SHARE = 0.10
"""Share of GPU time outside the measured ranges above which a result warns.

Trees trained on public operator times missed held-out times inside the ranges by 1 to 3 % in the median (95th
percentile: 5 to 10 %), outside by up to 60 % (95th percentile); bounds alone miss by 8 to 34 % in the median.
An error of 30 to 60 % on a tenth of the time moves a step by 3 to 6 %: as much as all the rest together.
"""

_NUMBERS = ("value", "low", "high", "distance")


@dataclass(frozen=True, slots=True)
class OperatorTrust:
    """What the times of one operator rest on; those of attention come apart by kind of request.

    Attributes:
        operator: name in the model's program.
        measured_s: GPU seconds by provenance, as of one rank of each tensor parallel group.
        interpolated_s: see `measured_s`.
        extrapolated_s: see `measured_s`.
        unmeasured_s: see `measured_s`.
        feature: the feature that lay furthest outside its measured range, None if none did.
        value: its value there.
        low: least measured value.
        high: greatest measured value.
        distance: how many times above `high`, or below `low`, it lay (for ranges that touch 0: how many
            widths of the range outside, plus one).
    """

    operator: str
    measured_s: float
    interpolated_s: float
    extrapolated_s: float
    unmeasured_s: float
    feature: str | None = None
    value: float | None = None
    low: float | None = None
    high: float | None = None
    distance: float | None = None

    @property
    def total_s(self) -> float:
        """GPU seconds of the operator."""
        return self.measured_s + self.interpolated_s + self.extrapolated_s + self.unmeasured_s

    @property
    def outside_s(self) -> float:
        """Those of them that no measurement near by stands behind."""
        return self.extrapolated_s + self.unmeasured_s


@dataclass(frozen=True, slots=True)
class Offender:
    """An operator whose times lie outside what was measured.

    Attributes:
        operator: its name.
        share: share of the run's GPU time that its extrapolated and unmeasured times take.
        unmeasured: most of that is unmeasured rather than extrapolated.
        feature: the feature that lay furthest outside, None where nothing was measured at all.
        value: its value there.
        low: least measured value.
        high: greatest measured value.
        distance: how far outside, as a factor.
    """

    operator: str
    share: float
    unmeasured: bool
    feature: str | None
    value: float | None
    low: float | None
    high: float | None
    distance: float | None

    def __str__(self) -> str:
        text = f"{self.operator}: {self.share:.1%} of GPU time"
        if self.unmeasured:
            text += ", not measured on this GPU"
        if self.feature is not None:
            text += f", {self.feature} {_number(self.value)}, measured {_range(self.low, self.high)}"
        return text


class Trust:
    """What a run's step times rest on: `shares`, `operators`, `worst()`, and `frame` for a closer look."""

    def __init__(self, operators: Iterable[OperatorTrust]) -> None:
        """Take the operators in program order; those of one name, in several stages, are put together."""
        merged: dict[str, OperatorTrust] = {}
        for operator in operators:
            known = merged.get(operator.operator)
            merged[operator.operator] = operator if known is None else _put_together(known, operator)
        self.operators = tuple(merged.values())

    @classmethod
    def from_raw(cls, raw: object) -> Trust:
        """Take the rows that `frontier._frontier.simulate` returns.

        Raises:
            InvariantError: a row has other fields, or a value that cannot be.
        """
        if not isinstance(raw, Sequence) or isinstance(raw, str):
            raise InvariantError(f"trust was {show_value(raw)}, must be a list of operators")
        return cls([_operator(row) for row in raw])

    def to_raw(self) -> list[dict[str, Any]]:
        """Return plain rows that `from_raw` takes."""
        return [asdict(operator) for operator in self.operators]

    @property
    def total_s(self) -> float:
        """GPU seconds of all operators."""
        return math.fsum(operator.total_s for operator in self.operators)

    @cached_property
    def shares(self) -> dict[str, float]:
        """Share of GPU time by provenance; empty where no operator was timed, as with linear step times."""
        total = self.total_s
        if not total > 0:
            return {}
        return {
            name: math.fsum(getattr(operator, f"{name}_s") for operator in self.operators) / total
            for name in PROVENANCES
        }

    @property
    def outside_share(self) -> float:
        """Share of GPU time that is extrapolated or unmeasured; 0 where no operator was timed."""
        return self.shares.get("extrapolated", 0.0) + self.shares.get("unmeasured", 0.0)

    def worst(self, count: int = 5) -> list[Offender]:
        """Return the operators with the most extrapolated and unmeasured GPU time, worst first."""
        total = self.total_s
        if not total > 0:
            return []
        ranked = sorted(
            (each for each in self.operators if each.outside_s > 0), key=lambda each: -each.outside_s
        )
        return [
            Offender(
                operator=each.operator,
                share=each.outside_s / total,
                unmeasured=each.unmeasured_s > each.extrapolated_s,
                **{name: getattr(each, name) for name in ("feature", *_NUMBERS)},
            )
            for each in ranked[:count]
        ]

    @property
    def frame(self) -> pl.DataFrame:
        """One row per operator: seconds by provenance, its share of GPU time, and the furthest excursion."""
        import polars as pl  # noqa: PLC0415 - polars is slow to import

        total = self.total_s
        schema: dict[str, Any] = {"operator": pl.String}
        schema |= {f"{name}_s": pl.Float64 for name in PROVENANCES}
        schema |= {"feature": pl.String, **dict.fromkeys(_NUMBERS, pl.Float64)}
        frame = pl.DataFrame(self.to_raw(), schema=schema)
        shares = [each.total_s / total if total > 0 else 0.0 for each in self.operators]
        return frame.insert_column(1, pl.Series("share", shares, dtype=pl.Float64))

    def warning(self) -> str | None:
        """Return what to say if more than `DOUBTFUL_SHARE` of GPU time lies outside the measured ranges."""
        if self.outside_share <= DOUBTFUL_SHARE:
            return None
        parts = [
            f"{percent(self.shares[name])} of GPU time is {name}"
            for name in PROVENANCES[2:]
            if self.shares[name] > 0
        ]
        return f"{' and '.join(parts)}; most of it: {'; '.join(map(str, self.worst(2)))}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: shares, and the worst operators."""
        return {"shares": dict(self.shares), "worst": [asdict(each) for each in self.worst()]}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Trust) and self.operators == other.operators

    def __hash__(self) -> int:
        return hash(self.operators)

    def __repr__(self) -> str:
        return f"Trust({line(self.shares) or 'no operators'})"

    def __str__(self) -> str:
        head = line(self.shares)
        if not head:
            return "no operator was timed"
        return "\n".join([head, *(f"  {each}" for each in self.worst())])


def percent(share: float) -> str:
    """Return a share that is not 0 without decimals, and never as none."""
    return f"{share:.0%}" if share >= 0.005 else "< 1%"


def line(shares: Mapping[str, float] | None, of: str = "GPU time") -> str:
    """Return shares as one line, best first; those of nothing are left out, and nothing at all is ''."""
    parts = [f"{percent(share)} {name}" for name, share in (shares or {}).items() if share > 0]
    return f"{of}: {', '.join(parts)}" if parts else ""


def _operator(row: object) -> OperatorTrust:
    names = [each.name for each in fields(OperatorTrust)]
    if not isinstance(row, Mapping) or set(row) != set(names) or not isinstance(row["operator"], str):
        raise InvariantError(f"trust has the row {show_value(row)}, must have {', '.join(names)}")
    for provenance in PROVENANCES:
        seconds = row[f"{provenance}_s"]
        if not isinstance(seconds, float | int) or not (math.isfinite(seconds) and seconds >= 0):
            message = (
                f"trust of {row['operator']}: {provenance}_s was {show_value(seconds)}, must be 0 or more"
            )
            raise InvariantError(message)
    found = [row[name] is not None for name in _NUMBERS]
    if any(found) and not (all(found) and all(math.isfinite(row[name]) for name in _NUMBERS)):
        raise InvariantError(f"trust of {row['operator']}: {show_value(row)} has half an excursion")
    return OperatorTrust(**{name: row[name] for name in names})


def _put_together(one: OperatorTrust, other: OperatorTrust) -> OperatorTrust:
    further = other if (other.distance or 0.0) > (one.distance or 0.0) else one
    seconds = {f"{name}_s": getattr(one, f"{name}_s") + getattr(other, f"{name}_s") for name in PROVENANCES}
    excursion = {name: getattr(further, name) for name in ("feature", *_NUMBERS)}
    return OperatorTrust(operator=one.operator, **seconds, **excursion)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _range(low: float | None, high: float | None) -> str:
    return f"{_number(low)} to {_number(high)}"
