"""Prompt segments of many requests, as columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Segments:
    """Segments of all requests, one after another; request i owns `offsets[i]` up to `offsets[i + 1]`."""

    offsets: NDArray[np.uint64]
    stream: NDArray[np.uint64]
    start: NDArray[np.uint32]
    length: NDArray[np.uint32]

    def take(self, rows: NDArray[np.intp]) -> Segments:
        """Return the segments of the requests `rows`, in that order."""
        begins = self.offsets[:-1].astype(np.int64)[rows]
        counts = self.offsets[1:].astype(np.int64)[rows] - begins
        index = ranges(begins, counts)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
        return Segments(offsets, self.stream[index], self.start[index], self.length[index])


def ranges(begins: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return `begins[i] ... begins[i] + counts[i] - 1` for all i, one after another."""
    before = np.cumsum(counts) - counts
    return np.repeat(begins - before, counts) + np.arange(int(counts.sum()))


def join(pieces: Sequence[Segments]) -> Segments:
    """Return the segments of the requests of all pieces."""
    sizes = np.cumsum([0, *(len(piece.stream) for piece in pieces)]).astype(np.uint64)
    moved = [piece.offsets[1:] + size for piece, size in zip(pieces, sizes, strict=False)]
    return Segments(
        np.concatenate([np.zeros(1, np.uint64), *moved]),
        np.concatenate([piece.stream for piece in pieces]),
        np.concatenate([piece.start for piece in pieces]),
        np.concatenate([piece.length for piece in pieces]),
    )
