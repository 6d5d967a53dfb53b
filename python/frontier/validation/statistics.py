"""What the errors of many cases come to: how large they are, and whether choices would be the right ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

DISTINCT = 0.05
"""Two measured values that differ by less (relative to the smaller) are a draw: runs are not repeatable to
better than a few percent."""


@dataclass(frozen=True, slots=True)
class Errors:
    """Errors of one metric over cases; shares and relative errors, not percent.

    Attributes:
        cases: how many there are.
        mean: mean absolute relative error.
        median: its median.
        p90: its 90th percentile.
        largest: the largest.
        bias: mean relative error with its sign.
        spearman: rank correlation of measured and simulated values; None for fewer than three cases, or where
            all are equal.
        pairs: pairs of alternatives whose measured values differ by more than `DISTINCT`.
        ordered: of these, the share that the simulation puts in the same order; None without pairs.
    """

    cases: int
    mean: float
    median: float
    p90: float
    largest: float
    bias: float
    spearman: float | None
    pairs: int
    ordered: float | None


def errors_of(measured: Sequence[float], simulated: Sequence[float], choices: Sequence[str]) -> Errors:
    """Return the statistics of one metric.

    Args:
        measured: measured values, positive.
        simulated: simulated values of the same cases.
        choices: of each case, what it is an alternative for; pairs are within equal ones that are not empty.
    """
    theirs, ours = np.asarray(measured, float), np.asarray(simulated, float)
    relative = ours / theirs - 1
    absolute = np.abs(relative)
    pairs, right = _pairs(theirs, ours, choices)
    return Errors(
        len(theirs),
        float(absolute.mean()),
        float(np.median(absolute)),
        float(np.percentile(absolute, 90)),
        float(absolute.max()),
        float(relative.mean()),
        spearman(theirs, ours),
        pairs,
        right / pairs if pairs else None,
    )


def spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> float | None:
    """Return the rank correlation of two samples; None where it is not defined."""
    if len(one) < 3 or len(set(one)) == 1 or len(set(other)) == 1:
        return None
    return float(np.corrcoef(_ranks(one), _ranks(other))[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ranks, those of equal values their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: NDArray[np.float64] = (ends - (counts - 1) / 2)[inverse]
    return ranks


def _pairs(theirs: NDArray[np.float64], ours: NDArray[np.float64], choices: Sequence[str]) -> tuple[int, int]:
    """Return how many pairs of alternatives differ, and how many of them are put in the right order."""
    members: dict[str, list[int]] = {}
    for index, choice in enumerate(choices):
        if choice:
            members.setdefault(choice, []).append(index)
    pairs = right = 0
    for same in members.values():
        for a, b in combinations(same, 2):
            if max(theirs[a], theirs[b]) <= (1 + DISTINCT) * min(theirs[a], theirs[b]):
                continue
            pairs += 1
            right += bool((theirs[a] - theirs[b]) * (ours[a] - ours[b]) > 0)
    return pairs, right
