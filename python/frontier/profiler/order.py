"""Coarse to fine: the order in which a grid is measured, so that stopping early leaves an even, wide grid.

An axis is refined by halving: level 0 are its ends, level 1 the middle, level 2 the quarters. A cell of a
grid has the level of its finest axis. Cells of one level come in an order drawn from the seed, so that
no axis is finished before another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def halving_levels(length: int) -> list[int]:
    """Return the level of every position of an ordered axis, ends first.

    `halving_levels(5)` is `[0, 2, 1, 2, 0]`.
    """
    levels = [0] * length
    spans = [(0, length - 1)]
    level = 1
    while spans:
        halves = []
        for low, high in spans:
            if high - low >= 2:
                middle = (low + high) // 2
                levels[middle] = level
                halves += [(low, middle), (middle, high)]
        spans = halves
        level += 1
    return levels


def doubling_levels(length: int) -> list[int]:
    """Return the level of every position of a list without order: two of level 0, then ever twice as many."""
    return [max(0, position.bit_length() - 1) for position in range(length)]


def coarse_to_fine(cells: Iterable[tuple[Sequence[int], T]], seed: int) -> list[T]:
    """Return the cells in order of their finest axis; `cells` are (level on each axis, cell)."""
    keyed = [
        (max(levels, default=0), sum(levels), _draw(seed, number), number, cell)
        for number, (levels, cell) in enumerate(cells)
    ]
    keyed.sort(key=lambda entry: entry[:4])
    return [entry[4] for entry in keyed]


def _draw(seed: int, number: int) -> bytes:
    return hashlib.sha256(f"{seed}/{number}".encode()).digest()[:8]
