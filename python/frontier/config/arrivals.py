"""Arrival processes."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from frontier.config.base import Choice, Section
from frontier.config.fields import (
    MIN_RATE_PER_S,
    Duration,
    Flag,
    Positive,
    PositiveDuration,
    PositiveRate,
    Rate,
)
from frontier.units import MAX_DURATION_NS, parse_number


class Poisson(Section):
    """Exponential gaps."""

    rate: PositiveRate
    """Mean arrivals per second."""


class Gamma(Section):
    """Gamma-distributed gaps."""

    rate: PositiveRate
    """Mean arrivals per second."""
    cv: Annotated[float, Field(ge=1e-4, le=1000), BeforeValidator(parse_number)]
    """Coefficient of variation of a gap: 1 is Poisson, larger is burstier (vLLM's burstiness is 1 / cv^2)."""


class Constant(Section):
    """Equal gaps."""

    rate: PositiveRate
    """Arrivals per second."""


class Burst(Section):
    """Everything at time 0: offline inference."""


class RateSegment(Section):
    """A stretch of time with one rate."""

    duration: PositiveDuration
    """Length of the stretch."""
    rate: Rate
    """Mean arrivals per second; 0 is a pause."""


class Piecewise(Section):
    """A Poisson process whose rate changes at given times."""

    segments: Annotated[tuple[RateSegment, ...], Field(min_length=1, max_length=100_000)]
    """Rates in order."""
    repeat: Flag = False
    """Start over after the last segment; otherwise the last rate stays."""

    @model_validator(mode="after")
    def _usable(self) -> Piecewise:
        for index, segment in enumerate(self.segments):
            if 0 < segment.rate < MIN_RATE_PER_S:
                raise ValueError(
                    f"segments.{index}.rate is {segment.rate:g}, must be 0 or at least {MIN_RATE_PER_S:g}"
                )
        if sum(segment.duration for segment in self.segments) > MAX_DURATION_NS:
            raise ValueError("the segments together are longer than 146 years")
        if all(segment.rate == 0 for segment in self.segments):
            raise ValueError("all rates are 0, so no request would ever arrive; at least one must be over 0")
        return self

    def mean_arrivals(self, duration_ns: int) -> float:
        """Return the mean number of arrivals in a time."""
        period_ns = sum(segment.duration for segment in self.segments)
        rounds = duration_ns // period_ns if self.repeat else 0
        mean = rounds * sum(segment.duration * segment.rate for segment in self.segments)
        left_ns = duration_ns - rounds * period_ns
        for segment in self.segments:
            mean += min(segment.duration, left_ns) * segment.rate
            left_ns -= min(segment.duration, left_ns)
        return (mean + left_ns * self.segments[-1].rate) / 1e9


class ClosedLoop(Section):
    """Clients that each send the next request after their last one ended."""

    concurrency: Positive
    """Number of clients."""
    think_time: Duration = 0
    """Pause between a completion and the next request."""


class Arrivals(Choice):
    """When requests arrive."""

    poisson: Poisson | None = None
    """Exponential gaps."""
    gamma: Gamma | None = None
    """Gamma-distributed gaps."""
    constant: Constant | None = None
    """Equal gaps."""
    burst: Burst | None = None
    """Everything at time 0."""
    piecewise: Piecewise | None = None
    """A Poisson process whose rate changes."""
    closed_loop: ClosedLoop | None = None
    """A fixed number of clients."""

    def mean_arrivals(self, duration_ns: int) -> float | None:
        """Return the mean number of arrivals in a time, None where it depends on the simulation."""
        if self.piecewise is not None:
            return self.piecewise.mean_arrivals(duration_ns)
        law = self.poisson or self.gamma or self.constant
        return law.rate * duration_ns / 1e9 if law is not None else None
