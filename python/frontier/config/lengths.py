"""Distributions of prompt and output lengths, in tokens."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Final

from pydantic import BeforeValidator, Field, model_validator

from frontier.config.base import Choice, Section
from frontier.config.fields import Tokens
from frontier.units import parse_count, parse_number


class _Range(Section):
    min: Tokens
    max: Tokens

    @model_validator(mode="after")
    def _ordered(self) -> Any:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is over max {self.max}, must be at most max")
        return self


class Uniform(_Range):
    """Uniform over min ... max, both included."""

    min: Tokens
    """Least."""
    max: Tokens
    """Most."""


class RangeRatio(Section):
    """Uniform around a mean, as `vllm bench serve --random-range-ratio`."""

    mean: Tokens
    """Middle of the range."""
    ratio: Annotated[float, Field(ge=0, lt=1), BeforeValidator(parse_number)]
    """Lengths are between mean * (1 - ratio), rounded down, and mean * (1 + ratio), rounded up."""

    def bounds(self) -> tuple[int, int]:
        """Return the least and the most tokens (at least 1), by the rule of `vllm bench serve`."""
        least = max(math.floor(self.mean * (1 - self.ratio)), 1)
        return least, max(math.ceil(self.mean * (1 + self.ratio)), 1)


MIN_ACCEPTANCE: Final = 0.01
"""Least share of lognormal draws that must fall inside the range, because draws outside are repeated."""


class Lognormal(_Range):
    """Lognormal, redrawn until inside min ... max."""

    mean: Annotated[float, Field(gt=0, le=1e9), BeforeValidator(parse_number)]
    """Mean of the law before truncation."""
    cv: Annotated[float, Field(ge=1e-3, le=100), BeforeValidator(parse_number)]
    """Standard deviation / mean of the law before truncation."""
    min: Tokens = 1
    """Least."""
    max: Tokens
    """Most."""

    @model_validator(mode="after")
    def _reachable(self) -> Lognormal:
        # Redrawing ends only where the range holds a fair share of the law.
        share = self.mass()
        if share < MIN_ACCEPTANCE:
            raise ValueError(
                f"only {share:.1%} of a lognormal law with mean {self.mean:g} and cv {self.cv:g} lies in"
                f" {self.min} ... {self.max}; widen the range or move the mean"
            )
        return self

    def mass(self) -> float:
        """Return the probability that the untruncated law, rounded, lies in the range."""
        variance = math.log1p(self.cv**2)
        sigma, mu = math.sqrt(variance), math.log(self.mean) - variance / 2

        def below(tokens: float) -> float:
            return 0.5 * math.erfc((mu - math.log(tokens)) / (sigma * math.sqrt(2)))

        lower = below(self.min - 0.5) if self.min > 1 else 0.0
        return below(self.max + 0.5) - lower


class Zipf(_Range):
    """Length min + i has weight 1 / (i + 1)^exponent."""

    exponent: Annotated[float, Field(gt=0, le=100), BeforeValidator(parse_number)]
    """Over 0; larger means shorter."""
    min: Tokens = 1
    """Least."""
    max: Annotated[int, Field(ge=1, le=10_000_000), BeforeValidator(parse_count)]
    """Most."""


Edge = Annotated[float, Field(ge=0, le=1e9), BeforeValidator(parse_number)]
Weight = Annotated[float, Field(ge=0, le=1e18), BeforeValidator(parse_number)]


class Histogram(Section):
    """Empirical: bin i covers edges[i] ... edges[i + 1] with weight weights[i]."""

    edges: Annotated[tuple[Edge, ...], Field(min_length=2, max_length=100_000)]
    """Increasing, one more than weights."""
    weights: Annotated[tuple[Weight, ...], Field(min_length=1, max_length=100_000)]
    """Not all zero; they need not add up to 1."""

    @model_validator(mode="after")
    def _consistent(self) -> Histogram:
        if len(self.edges) != len(self.weights) + 1:
            numbers = f"{len(self.edges)} edges and {len(self.weights)} weights"
            raise ValueError(f"has {numbers}, must have one edge more than weights")
        for index, (low, high) in enumerate(zip(self.edges, self.edges[1:], strict=False)):
            if not low < high:
                raise ValueError(f"edges[{index + 1}] is {high:g} after {low:g}, edges must increase")
        if not any(self.weights):
            raise ValueError("all weights are 0, at least one must be over 0")
        return self


class Length(Choice):
    """A number of tokens: a number, or a distribution."""

    shorthand: ClassVar[str | None] = "fixed"

    fixed: Tokens | None = None
    """Always the same."""
    uniform: Uniform | None = None
    """Uniform over min ... max."""
    range_ratio: RangeRatio | None = None
    """Uniform around a mean, as `vllm bench serve --random-range-ratio`."""
    lognormal: Lognormal | None = None
    """Lognormal between min and max."""
    zipf: Zipf | None = None
    """Zipf between min and max."""
    histogram: Histogram | None = None
    """Empirical."""

    @classmethod
    def expand(cls, value: Any) -> Any:
        """Return `{fixed: value}` for a number; a name alone is no length."""
        if isinstance(value, str) and not value[:1].isdigit():
            return value
        return super().expand(value)

    def bounds(self) -> tuple[int, int]:
        """Return the fewest and the most tokens that may be drawn."""
        if self.fixed is not None:
            return self.fixed, self.fixed
        if self.range_ratio is not None:
            return self.range_ratio.bounds()
        if self.histogram is not None:
            edges = self.histogram.edges
            return max(round(edges[0]), 1), max(round(edges[-1]), 1)
        law = self.uniform or self.lognormal or self.zipf
        assert law is not None
        return law.min, law.max
