"""Where to measure next: where the predictor is least sure.

The rule stands on its own and needs no trained model. Points live in a space of logarithms (rows, widths,
contexts, loads). What was measured there is y = ln(seconds / bound), with the bound of `fitted_bound`: the
same quantity that the trained predictors learn.

1. Leave-one-out: every measured point is predicted from its `NEIGHBOURS` nearest others, weighted by 1 /
   distance^2; r is by how much that misses y.
2. A candidate at distance d from the nearest measured point is worth
   `d * (FLOOR + mean of |r| over its nearest measured points, weighted by 1 / distance^2)`:
   far from data, and where data does not foretell its neighbours.
3. The best candidate is taken as if it had been measured with that mean as its |r|, and the rule is applied
   again, so that one choice of several points spreads out.

With `FLOOR`, points whose neighbours agree to the last digit are still filled evenly.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from frontier.profiler.points import Point

NEIGHBOURS: Final = 4
FLOOR: Final = 0.005
"""The least residual assumed: what two runs of one kernel differ by."""

MOST_CANDIDATES: Final = 1024
"""Candidates looked at per choice; a larger pool is drawn from by the seed."""

_APART: Final = 4.0
"""Distance between types of arithmetic, and between operators, in doublings."""

Floats = NDArray[np.float64]


def coordinates(points: Sequence[Point]) -> Floats:
    """Return the points' places, one row each: base-2 logarithms of what their time depends on."""
    kinds = {kind: place for place, kind in enumerate(sorted({(p.operator, p.dtype) for p in points}))}
    rows = []
    for point in points:
        own = [math.log2(1 + abs(value)) for value in point.columns.values()]
        if point.groups:
            counts, queries, contexts = zip(*point.groups, strict=True)
            requests = sum(counts)
            own += [
                math.log2(requests),
                math.log2(sum(c * q for c, q in zip(counts, queries, strict=True))),
                math.log2(sum(c * x for c, x in zip(counts, contexts, strict=True))),
                math.log2(max(contexts)),
            ]
        if point.expert_loads:
            own += [math.log2(1 + max(point.expert_loads)), math.log2(1 + sum(map(bool, point.expert_loads)))]
        rows.append([_APART * kinds[point.operator, point.dtype], *own])
    width = max(map(len, rows))
    return np.array([row + [0.0] * (width - len(row)) for row in rows], dtype=np.float64)


def fitted_bound(flops: Floats, moved: Floats, seconds: Floats) -> tuple[float, float, float]:
    """Return the best rates seen (FLOP/s, bytes/s) and the shortest time: hardly any time seen beats it.

    A rate that nothing was measured for is infinite.
    """
    compute = float(np.max(flops / seconds))
    memory = float(np.max(moved / seconds))
    return compute or math.inf, memory or math.inf, float(np.min(seconds))


def log_ratios(points: Sequence[Point], seconds: Sequence[float]) -> Floats:
    """Return ln(seconds / bound) of measured points; the bound is max(flops, bytes over rates) + shortest."""
    flops = np.array([point.flops for point in points])
    moved = np.array([point.bytes for point in points])
    times = np.array(seconds)
    compute, memory, least = fitted_bound(flops, moved, times)
    result: Floats = np.log(times / (np.maximum(flops / compute, moved / memory) + least))
    return result


def leave_one_out(places: Floats, y: Floats) -> Floats:
    """Return by how much each point's nearest others miss its y; zero for a single point."""
    if len(y) < 2:
        return np.zeros(len(y))
    distances = _distances(places, places)
    np.fill_diagonal(distances, np.inf)
    return np.abs(y - _weighted(distances, y))


def choose(
    measured: Sequence[Point], seconds: Sequence[float], candidates: Sequence[Point], count: int, seed: int
) -> list[Point]:
    """Return the `count` candidates to measure next, in order; fewer where there are fewer.

    Args:
        measured: what was measured so far; at least one.
        seconds: their times, positive.
        candidates: what could be measured, none of it measured.
        count: points wanted.
        seed: draws which candidates are looked at where there are more than `MOST_CANDIDATES`.
    """
    pool = list(candidates)
    if len(pool) > MOST_CANDIDATES:
        rng = random.Random(f"adaptive/{seed}/{len(measured)}")
        kept = sorted(rng.sample(range(len(pool)), MOST_CANDIDATES))
        pool = [pool[index] for index in kept]
    if not pool:
        return []
    places = coordinates([*measured, *pool])
    known, open_ = places[: len(measured)], places[len(measured) :]
    residuals = leave_one_out(known, log_ratios(measured, seconds))
    return [pool[index] for index in choose_places(known, residuals, open_, count)]


def choose_places(known: Floats, residuals: Floats, candidates: Floats, count: int) -> list[int]:
    """Apply steps 2 and 3 of the rule: return the chosen candidates' numbers in order of choice."""
    distances = _distances(candidates, known)
    nearest = distances.min(axis=1)
    doubt = FLOOR + _weighted(distances, residuals)
    chosen: list[int] = []
    for _ in range(min(count, len(candidates))):
        worth = nearest * doubt
        worth[chosen] = -1.0
        best = int(np.argmax(worth))
        chosen.append(best)
        away = _distances(candidates, candidates[best : best + 1])[:, 0]
        # Where the chosen one is nearest, its doubt is the best guess of how the neighbourhood behaves.
        doubt = np.where(away < nearest, (doubt + doubt[best]) / 2, doubt)
        nearest = np.minimum(nearest, away)
    return chosen


def _distances(a: Floats, b: Floats) -> Floats:
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2 * (a @ b.T)
    result: Floats = np.sqrt(np.maximum(squares, 0.0))
    return result


def _weighted(distances: Floats, values: Floats) -> Floats:
    """Return for each row the mean of `values` over its nearest columns, weighted by 1 / distance^2."""
    most = min(NEIGHBOURS, int(np.isfinite(distances).sum(axis=1).min()))
    nearest = np.argpartition(distances, most - 1, axis=1)[:, :most]
    near = np.take_along_axis(distances, nearest, axis=1)
    weights = 1.0 / np.maximum(near, 1e-6) ** 2
    result: Floats = (weights * values[nearest]).sum(axis=1) / weights.sum(axis=1)
    return result
