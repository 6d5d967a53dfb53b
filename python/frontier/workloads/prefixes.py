"""Block hashes to prompt segments.

A block hash names the content of a block of `block_size` tokens, so each hash could be a stream of its own.
Most hashes always follow the same other one, though. A hash that was first seen right after another one
continues that one's stream (unless an earlier hash already does). That leaves token identities as they were
and turns thousands of blocks into a handful of segments.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from frontier.workloads.segments import Segments, join

REST_STREAM_BASE: Final = 1 << 61
"""Streams from here on hold what no hash covers, unique to one request each."""
_MAX_POSITION: Final = 1 << 31


class Prefixes:
    """Turns block hashes into segments, piece by piece; remembers some 25 bytes per distinct hash."""

    def __init__(self, block_size: int) -> None:
        self._block_size = block_size
        self._pieces: list[Segments] = []
        self._num_streams = 0
        self._num_rests = 0
        # Of each hash seen, in ascending order: its stream, its place there, whether another continues it.
        self._hashes = np.zeros(0, np.uint64)
        self._stream = np.zeros(0, np.int64)
        self._place = np.zeros(0, np.int64)
        self._continued = np.zeros(0, np.bool_)

    def add(
        self, hashes: NDArray[np.uint64], counts: NDArray[np.int64], prompt_tokens: NDArray[np.int64]
    ) -> None:
        """Add requests.

        `hashes` are those of all of them, one after another, `counts` their numbers per request: floor or
        ceil of `prompt_tokens / block_size`. Tokens that no hash covers are unique to the request. A request
        without hashes has no segments.
        """
        size = self._block_size
        stream, place = self._find(hashes, counts)
        ends = np.cumsum(counts)
        hashed = counts > 0
        length = np.full(len(hashes), size, np.int64)
        length[(ends - 1)[hashed]] = (prompt_tokens - (counts - 1) * size)[hashed].clip(max=size)

        rest = prompt_tokens - counts * size
        has_rest = hashed & (rest > 0)
        at = ends[has_rest]
        fresh = REST_STREAM_BASE + self._num_rests + np.arange(len(at))
        self._num_rests += len(at)
        stream = np.insert(stream, at, fresh)
        start = np.insert(place * size, at, 0)
        length = np.insert(length, at, rest[has_rest])
        self._pieces.append(_merge(stream, start, length, counts + has_rest))

    def finish(self) -> Segments:
        """Return the segments of all requests added."""
        return join(self._pieces)

    def _find(
        self, hashes: NDArray[np.uint64], counts: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (stream, place in it) of every hash, taking note of those not seen before."""
        distinct, first_seen, code = np.unique(hashes, return_index=True, return_inverse=True)
        code = code.reshape(-1)
        slot = np.searchsorted(self._hashes, distinct)
        known = np.append(self._hashes, np.uint64(0))[slot] == distinct
        known &= slot < len(self._hashes)
        stream, place = np.zeros(len(distinct), np.int64), np.zeros(len(distinct), np.int64)
        continued = np.zeros(len(distinct), np.bool_)
        stream[known], place[known] = self._stream[slot[known]], self._place[slot[known]]
        continued[known] = self._continued[slot[known]]

        order = np.argsort(first_seen)
        new = order[~known[order]]
        head, steps = _chains(new, first_seen, code, counts, continued)
        heads = new[head[new] == new]
        stream[heads] = self._num_streams + np.arange(len(heads))
        stream[new] = stream[head[new]]
        place[new] = place[head[new]] + steps[new]
        self._num_streams += len(heads)
        # Positions have 32 bits; a hash that would lie beyond has a stream of its own.
        far = new[place[new] >= _MAX_POSITION // self._block_size]
        stream[far], place[far] = self._num_streams + np.arange(len(far)), 0
        self._num_streams += len(far)

        self._continued[slot[known]] = continued[known]
        at = slot[~known]
        self._hashes = np.insert(self._hashes, at, distinct[~known])
        self._stream = np.insert(self._stream, at, stream[~known])
        self._place = np.insert(self._place, at, place[~known])
        self._continued = np.insert(self._continued, at, continued[~known])
        return stream[code], place[code]


def _chains(
    new: NDArray[np.intp],
    first_seen: NDArray[np.intp],
    code: NDArray[np.intp],
    counts: NDArray[np.int64],
    continued: NDArray[np.bool_],
) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Return (code that a chain begins at, steps from there) of every code, and note which are continued.

    `new` are the codes not seen before, in order of appearance; the others begin at themselves.
    """
    begins = np.zeros(len(code), np.bool_)
    begins[(np.cumsum(counts) - counts)[counts > 0]] = True
    follower = new[~begins[first_seen[new]]]
    # Of the hashes first seen after the same one, the earliest continues its stream.
    parent, index = np.unique(code[first_seen[follower] - 1], return_index=True)
    free = ~continued[parent]
    continued[parent] = True
    head = np.arange(len(first_seen))
    head[follower[index[free]]] = parent[free]
    steps = (head != np.arange(len(head))).astype(np.int64)
    # Pointer doubling: after k rounds `head` is 2^k links back, or the chain's beginning.
    while not np.array_equal(further := head[head], head):
        steps += steps[head]
        head = further
    return head, steps


def _merge(
    stream: NDArray[np.int64], start: NDArray[np.int64], length: NDArray[np.int64], counts: NDArray[np.int64]
) -> Segments:
    """Join segments of a request that continue each other."""
    begins = np.ones(len(stream), np.bool_)
    begins[1:] = (stream[1:] != stream[:-1]) | (start[1:] != start[:-1] + length[:-1])
    ends = np.cumsum(counts)
    begins[(ends - counts)[counts > 0]] = True
    kept = np.flatnonzero(begins)
    merged = np.add.reduceat(length, kept) if len(kept) else length
    rank = np.concatenate([[0], np.cumsum(begins)])
    return Segments(
        offsets=np.concatenate([[0], rank[ends]]).astype(np.uint64),
        stream=stream[kept].astype(np.uint64),
        start=start[kept].astype(np.uint32),
        length=merged.astype(np.uint32),
    )
