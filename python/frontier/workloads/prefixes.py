"""Block hashes to prompt segments.

A block hash names the content of a block of `block_size` tokens, so each hash could be a stream of its own.
Most hashes always follow the same other one, though. A hash that was first seen right after another one
continues that one's stream (unless an earlier hash already does). That leaves token identities as they were
and turns thousands of blocks into a handful of segments.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MAX_POSITION = 2**31


@dataclass(frozen=True)
class Segments:
    """Prompt segments of all requests: request i owns `offsets[i] ... offsets[i + 1]`."""

    offsets: NDArray[np.uint64]
    stream: NDArray[np.uint64]
    start: NDArray[np.uint32]
    length: NDArray[np.uint32]


def segments_of_hashes(
    hashes: NDArray[np.uint64], counts: NDArray[np.int64], prompt_tokens: NDArray[np.int64], block_size: int
) -> Segments:
    """Return the segments of prompts given by block hashes.

    `hashes` are those of all requests, one after another, `counts` of them per request: floor or ceil of
    `prompt_tokens / block_size`. Tokens that no hash covers are unique to the request. A request without
    hashes has no segments.
    """
    stream, start = _chains(hashes, counts, block_size)
    first = np.cumsum(counts) - counts
    covered = np.minimum(counts * block_size, prompt_tokens)
    length = np.full(len(hashes), block_size, np.int64)
    hashed = counts > 0
    last = (first + counts - 1)[hashed]
    length[last] = (prompt_tokens - (counts - 1) * block_size)[hashed].clip(max=block_size)

    # What no hash covers becomes a segment of a fresh stream at the end of the request.
    has_rest = hashed & (covered < prompt_tokens)
    at = (first + counts)[has_rest]
    fresh = (int(stream.max()) + 1 if len(stream) else 0) + np.arange(len(at), dtype=np.int64)
    stream = np.insert(stream, at, fresh)
    start = np.insert(start, at, 0)
    length = np.insert(length, at, (prompt_tokens - covered)[has_rest])
    return _merge(stream, start, length, counts + has_rest)


def _chains(
    hashes: NDArray[np.uint64], counts: NDArray[np.int64], block_size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (stream, position of the first token) of each hash."""
    _, first_seen, code = np.unique(hashes, return_index=True, return_inverse=True)
    code = code.reshape(-1)
    num = len(first_seen)
    begins = np.zeros(len(hashes), np.bool_)
    begins[(np.cumsum(counts) - counts)[counts > 0]] = True
    order = np.argsort(first_seen)
    follower = order[~begins[first_seen[order]]]
    # Of the hashes first seen after the same one, the earliest continues its stream.
    before = code[first_seen[follower] - 1]
    parent, index = np.unique(before, return_index=True)
    head = np.arange(num)
    head[follower[index]] = parent
    depth = (head != np.arange(num)).astype(np.int64)
    # Pointer doubling: after k rounds `head` is 2^k links back, or the chain's beginning.
    while not np.array_equal(further := head[head], head):
        depth += depth[head]
        head = further
    if num and (int(depth.max()) + 1) * block_size > _MAX_POSITION:
        # Positions have 32 bits; a stream per hash always fits.
        head, depth = np.arange(num), np.zeros(num, np.int64)
    heads = order[head[order] == order]
    number = np.empty(num, np.int64)
    number[heads] = np.arange(len(heads))
    return number[head][code], (depth * block_size)[code]


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
