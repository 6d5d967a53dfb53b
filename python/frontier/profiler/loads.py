"""Seeded loads: how many tokens each expert gets, and how long the requests of a decode batch are.

Drawn from generators whose sequences stay as they are (Python's `random.Random`, numpy's frozen
`RandomState`), so that a seed names a load for good.
"""

from __future__ import annotations

import functools
import random
import zlib

import numpy as np

BALANCED = -1.0
UNIFORM = 0.0


@functools.lru_cache(maxsize=4096)
def expert_loads(rows: int, experts: int, top_k: int, imbalance: float, seed: int) -> tuple[int, ...]:
    """Return the rows of each expert: `rows * top_k` in all, at most `rows` each.

    Args:
        rows: tokens.
        experts: routed experts.
        top_k: different experts per token.
        imbalance: -1 as even as can be; 0 every token draws its experts uniformly; alpha > 0 the power law
            by which NVIDIA's aiconfigurator loads experts: popularities drawn from a density ~ x^-alpha
            between 1 and 0.8 `rows` (0.01 and 2 where choices are no more than experts), scaled to the total.
        seed: of the draw.
    """
    if not 1 <= top_k <= experts:
        raise ValueError(f"top_k was {top_k}, must be 1 to {experts}, the number of experts")
    total = rows * top_k
    name = f"{seed}/{rows}/{experts}/{top_k}/{imbalance}"
    if imbalance == BALANCED:
        share, rest = divmod(total, experts)
        return tuple(share + (expert < rest) for expert in range(experts))
    if imbalance == UNIFORM:
        # The top_k smallest of independent draws are top_k different experts, all choices alike.
        draws = np.random.RandomState(zlib.crc32(name.encode())).random_sample((rows, experts))
        chosen = np.argpartition(draws, top_k - 1, axis=1)[:, :top_k]
        return tuple(int(load) for load in np.bincount(chosen.ravel(), minlength=experts))
    if imbalance < 0:
        raise ValueError(f"imbalance was {imbalance}, must be -1 (balanced), 0 (uniform) or positive")
    low, high = (1.0, max(0.8 * rows, 1.5)) if total > experts else (0.01, 2.0)
    rng = random.Random(name)
    weights = [_power_law(rng.random(), imbalance, low, high) for _ in range(experts)]
    return _apportion(weights, total, rows)


def _power_law(u: float, alpha: float, low: float, high: float) -> float:
    """Return the value below which a share `u` of a density ~ x^-alpha on [low, high] lies."""
    if alpha == 1:
        return float(low * (high / low) ** u)
    power = 1 - alpha
    return float((low**power + u * (high**power - low**power)) ** (1 / power))


def _apportion(weights: list[float], total: int, most: int) -> tuple[int, ...]:
    """Share out `total` by `weights`, none above `most`; what rounding leaves goes to the heaviest first."""
    scale = total / sum(weights)
    loads = [min(most, round(weight * scale)) for weight in weights]
    heaviest = sorted(range(len(weights)), key=lambda index: (-weights[index], index))
    step = 1 if total > sum(loads) else -1
    while sum(loads) != total:
        for index in heaviest:
            if sum(loads) == total:
                break
            if 0 <= loads[index] + step <= most:
                loads[index] += step
    return tuple(loads)


def routing(rows: int, loads: tuple[int, ...], seed: int) -> list[list[int]]:
    """Return the experts of each token so that the loads come out exactly and no token meets one twice.

    Experts are dealt to tokens round and round: an expert's rows are consecutive deals, and since it has at
    most `rows` of them, they go to different tokens. Tokens are shuffled, so that an expert's rows lie apart.
    """
    tokens = list(range(rows))
    random.Random(f"routing/{seed}/{rows}").shuffle(tokens)
    chosen: list[list[int]] = [[] for _ in range(rows)]
    deal = 0
    for expert, load in enumerate(loads):
        for _ in range(load):
            chosen[tokens[deal % rows]].append(expert)
            deal += 1
    return chosen


def two_modes(batch: int, short: int, long: int, long_share: float) -> tuple[tuple[int, int, int], ...]:
    """Return the groups of a decode batch of short and of long requests; at least one is long."""
    longs = min(batch - 1, max(1, round(batch * long_share)))
    return ((longs, 1, long), (batch - longs, 1, short))
