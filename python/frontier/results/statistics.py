"""Means, deviations and percentiles of plain and weighted samples, as numpy defines them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NS_PER_S = 1e9
_BLOCK = 1 << 16

# Two-sided 95 % quantiles (0.975) of Student's t, by degrees of freedom: Abramowitz and Stegun, table 26.10.
_T_975 = {9: 2.262, 19: 2.093}
# One-sided 95 % quantile (0.95) for 8 degrees of freedom, same table.
T_95_DF8 = 1.860


def t_975(degrees_of_freedom: int) -> float:
    """Return the 0.975 quantile of Student's t; only the degrees of freedom in use are tabulated."""
    return _T_975[degrees_of_freedom]


@dataclass(frozen=True, slots=True)
class Sample:
    """A multiset of numbers: distinct-or-not `values` in rising order, and how often each occurs."""

    values: NDArray[np.float64]
    cumulative: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.cumulative[-1]) if len(self.cumulative) else 0

    @property
    def counts(self) -> NDArray[np.int64]:
        """How often each entry of `values` occurs."""
        return np.diff(self.cumulative, prepend=0)

    def moments(self) -> tuple[float, float] | tuple[None, None]:
        """Return the mean and the population deviation (divisor n, as `numpy.std`); None, None when empty."""
        if not len(self):
            return None, None
        # Sums rather than dot products: numpy adds pairwise, and no thread pool of a BLAS wakes up.
        mean = math.fsum(float((values * counts).sum()) for values, counts in self._blocks()) / len(self)
        square = math.fsum(float(((values - mean) ** 2 * counts).sum()) for values, counts in self._blocks())
        return mean, math.sqrt(square / len(self))

    def _blocks(self) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64]]]:
        """Yield values and counts in blocks: sums then need no temporary array as long as the sample."""
        for begin in range(0, len(self.values), _BLOCK):
            cumulative = self.cumulative[begin : begin + _BLOCK]
            before = self.cumulative[begin - 1] if begin else 0
            yield self.values[begin : begin + _BLOCK], np.diff(cumulative, prepend=before)

    def mean(self) -> float | None:
        """Return the mean, None when empty."""
        return self.moments()[0]

    def std(self) -> float | None:
        """Return the population deviation, None when empty."""
        return self.moments()[1]

    def percentiles(self, q: Sequence[float]) -> list[float | None]:
        """Return the percentiles `q` (0 to 100) by linear interpolation, as `numpy.percentile` does.

        All are None when the sample is empty.
        """
        if not len(self):
            return [None] * len(q)
        rank = np.asarray(q, np.float64) / 100.0 * (len(self) - 1)
        lower = np.floor(rank).astype(np.int64)
        upper = np.minimum(lower + 1, len(self) - 1)
        # The value of rank r is the first one whose cumulative count exceeds r.
        low = self.values[np.searchsorted(self.cumulative, lower, side="right")]
        high = self.values[np.searchsorted(self.cumulative, upper, side="right")]
        return [float(value) for value in low + (high - low) * (rank - lower)]

    def max(self) -> float | None:
        """Return the largest value, None when empty."""
        return float(self.values[-1]) if len(self) else None


def sample(values: NDArray[np.generic]) -> Sample:
    """Return the sample in which each of `values` occurs once."""
    return Sample(np.sort(values.astype(np.float64)), np.arange(1, len(values) + 1, dtype=np.int64))


def weighted_sample(values: NDArray[np.int64], counts: NDArray[np.int64]) -> Sample:
    """Return the sample in which `values[i]` occurs `counts[i]` (at least 1) times; both are overwritten.

    Whole nanoseconds stay exact as float64 up to 2^53 ns (104 days).
    """
    bits = int(counts.max(initial=0)).bit_length()
    if len(values) and values.min() >= 0 and int(values.max()) < 1 << (63 - bits):
        # Value and count in one integer: sorting integers is several times faster than finding an order.
        values <<= bits
        values |= counts
        values.sort()
        np.bitwise_and(values, (1 << bits) - 1, out=counts)
        np.cumsum(counts, out=counts)
        values >>= bits
        return Sample(values.astype(np.float64), counts)
    order = np.argsort(values)
    return Sample(values[order].astype(np.float64), np.cumsum(counts[order]))


def exact_sum(values: NDArray[np.int64]) -> int:
    """Return the sum of int64 values as a Python integer, past the range of int64."""
    high, low = values >> 32, values & 0xFFFF_FFFF
    return (int(high.sum()) << 32) + int(low.sum())


def share(part: float, whole: float) -> float | None:
    """Return `part / whole`, None when there is no whole."""
    return part / whole if whole else None
