"""Exact token times without a row per token.

A request emits one token (with speculative decoding, equally many in each step) at the end of each step of
its runs. So the gaps inside a run are differences of consecutive step ends, shared by all requests that were
decoding there, and gaps of no time between the tokens of one step. Counting how many requests cross each step
boundary (a difference array) gives the whole multiset of inter-token gaps in O(steps + runs). How many tokens
came before some moment follows from the runs alone.

A first token that came with a prompt's KV (SGLang's decode servers) is no step's. All of them are kept as
steps of one more replica, in the order of their times.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from frontier.results.columns import NEVER, Columns, Ints
from frontier.results.statistics import Sample, weighted_sample

_BLOCK = 1 << 16

CARRIED: Final = 0xFFFFFFFF
"""Stands in the column of first and last steps for a first token that came with the KV of its prompt."""


@dataclass(frozen=True)
class TokenRuns:
    """Runs of tokens, ordered by request and then by time.

    `request`, `first`, `last` and `per_step` have one entry per run; steps are numbered over all replicas, so
    that they index `end_ns`. The steps of replica r are `replica_offsets[r] .. replica_offsets[r + 1]`. The
    last replica is that of carried tokens where there are any.
    """

    request: Ints
    first: Ints
    last: Ints
    per_step: Ints
    end_ns: Ints
    replica_offsets: Ints
    num_requests: int

    @classmethod
    def from_columns(cls, columns: Columns) -> TokenRuns:
        """Order the runs of `columns.token_runs` and number their steps over all replicas."""
        runs = columns.token_runs
        # Runs of one request come in time order, so a stable sort by request is enough.
        order = np.argsort(runs["request"], kind="stable")
        request = runs["request"][order].astype(np.int64)
        replica = columns.requests["replica"][request].astype(np.int64)
        base = columns.replica_offsets[replica]
        first, last = base + runs["first_step"][order], base + runs["last_step"][order]
        end_ns, offsets = columns.steps["end_ns"], columns.replica_offsets
        carried = np.flatnonzero(runs["first_step"][order] == CARRIED)
        if len(carried):
            times = columns.requests["first_token_ns"][request[carried]]
            in_time = np.argsort(times, kind="stable")
            first[carried[in_time]] = last[carried[in_time]] = len(end_ns) + np.arange(len(carried))
            end_ns = np.append(end_ns, times[in_time])
            offsets = np.append(offsets, len(end_ns))
        return cls(
            request=request,
            first=first,
            last=last,
            per_step=runs["tokens_per_step"][order].astype(np.int64),
            end_ns=end_ns,
            replica_offsets=offsets,
            num_requests=len(columns.requests["status"]),
        )

    def only(self, requests: NDArray[np.bool_]) -> TokenRuns:
        """Return the runs of some requests, given as boolean mask; all of them keep their numbers."""
        chosen = requests[self.request]
        columns = ("request", "first", "last", "per_step")
        return replace(self, **{name: getattr(self, name)[chosen] for name in columns})

    def gaps(self, requests: NDArray[np.bool_] | None = None) -> Sample:
        """Return the multiset of gaps (ns) between consecutive tokens of each of `requests` (default: all).

        Args:
            requests: boolean mask over all requests of the run.
        """
        chosen = slice(None) if requests is None else requests[self.request]
        request, first, last = self.request[chosen], self.first[chosen], self.last[chosen]
        together = int(((last - first + 1) * (self.per_step[chosen] - 1)).sum())
        # inside[i]: how many requests cross from step i to step i + 1. It is 0 at the last step of a replica,
        # so no difference reaches over replicas.
        inside = self._crossings(first + 1, last)[1:]
        between = self._between(request, first, last)
        many = int(np.count_nonzero(inside))
        length = many + len(between) + (together > 0)
        values, counts = np.zeros(length, np.int64), np.ones(length, np.int64)
        values[many : many + len(between)] = between
        if together:
            counts[-1] = together
        self._fill(values, counts, inside)
        del inside  # as long as the steps, of which there may be millions
        return weighted_sample(values, counts)

    def _fill(self, values: Ints, counts: Ints, inside: Ints) -> None:
        """Write the gaps that `inside` counts, in blocks, to spare long temporaries."""
        done = 0
        for begin in range(0, len(inside), _BLOCK):
            crossings = inside[begin : begin + _BLOCK]
            crossed = crossings > 0
            part = slice(done, done + int(np.count_nonzero(crossed)))
            counts[part] = crossings[crossed]
            values[part] = np.diff(self.end_ns[begin : begin + _BLOCK + 1])[crossed]
            done = part.stop

    def tokens_until(self, time_ns: Ints) -> Ints:
        """Return how many tokens (of all requests) were emitted before each moment."""
        tokens = np.zeros(len(time_ns), np.int64)
        firsts, stops = self.replica_offsets[:-1], self.replica_offsets[1:]
        at_once = max(1, _BLOCK // max(1, len(time_ns)))  # replicas, to spare long temporaries
        for begin in range(0, len(firsts), at_once):
            first, stop = firsts[begin : begin + at_once, None], stops[begin : begin + at_once, None]
            step = self._first_step_from(first, stop, time_ns)
            tokens += (self._tokens_before(step) - self._tokens_before(first)).sum(axis=0)
        return tokens

    def _first_step_from(self, first: Ints, stop: Ints, time_ns: Ints) -> Ints:
        """Return the first step of `first` .. `stop` that ends at each moment or later, by bisection."""
        low, high = (np.broadcast_to(edge, (len(edge), len(time_ns))).copy() for edge in (first, stop))
        while bool((low < high).any()):
            middle = (low + high) // 2
            # Where nothing is left to halve, the step in the middle may not exist.
            earlier = self.end_ns[np.minimum(middle, len(self.end_ns) - 1)] < time_ns
            np.copyto(low, middle + 1, where=earlier & (low < high))
            np.copyto(high, middle, where=~earlier & (low < high))
        return low

    def _tokens_before(self, step: Ints) -> Ints:
        """Return how many tokens came in the steps up to each of `step`, which is left out."""
        begins, stops = self._ramps
        return begins(step) - stops(step)

    @cached_property
    def _ramps(self) -> tuple[Ramps, Ramps]:
        # A run adds its tokens per step from its first step on, and no more from the step after its last one.
        return Ramps.of(self.first, self.per_step), Ramps.of(self.last + 1, self.per_step)

    @cached_property
    def tokens_per_request(self) -> Ints:
        """Tokens that each request emitted, one entry per request."""
        tokens = np.zeros(self.num_requests, np.int64)
        np.add.at(tokens, self.request, (self.last - self.first + 1) * self.per_step)
        return tokens

    @cached_property
    def max_gap_ns(self) -> Ints:
        """Largest gap between consecutive tokens of each request, -1 for those with fewer than two tokens."""
        largest = np.full(self.num_requests, NEVER, np.int64)
        np.maximum.at(largest, self.request, self._max_inside())
        np.maximum.at(largest, self.request[self.per_step > 1], 0)
        if len(self.request) > 1:
            same = self.request[1:] == self.request[:-1]
            np.maximum.at(largest, self.request[1:][same], self._between(self.request, self.first, self.last))
        return largest

    def _crossings(self, first: Ints, last: Ints) -> Ints:
        """Count, for each step, the runs with first <= step <= last (empty where first = last + 1)."""
        length = len(self.end_ns) + 1
        # bincount in place of add.at: it is an order of magnitude faster on long inputs.
        counts: Ints = np.bincount(first, minlength=length)
        counts -= np.bincount(last + 1, minlength=length)
        np.cumsum(counts, out=counts)
        return counts[:-1]

    def _between(self, request: Ints, first: Ints, last: Ints) -> Ints:
        same = request[1:] == request[:-1]
        gaps: Ints = self.end_ns[first[1:][same]] - self.end_ns[last[:-1][same]]
        return gaps

    def _max_inside(self) -> Ints:
        """Return the largest gap inside each run, -1 for runs of one token.

        Windows of 2^k gaps answer all runs with 2^k to 2^(k+1) - 1 gaps, two overlapping windows each: memory
        O(steps), time O(steps log longest run).
        """
        largest = np.full(len(self.first), NEVER, np.int64)
        lengths = self.last - self.first
        levels = np.frexp(lengths.astype(np.float64))[1] - 1
        window = np.diff(self.end_ns, prepend=0)  # window[i]: the largest of the gaps i ..= i + 2^k - 1
        for level in range(int(levels.max(initial=-1)) + 1):
            if level > 0:
                half = 1 << (level - 1)
                window = np.maximum(window[:-half], window[half:])
            chosen = np.flatnonzero((levels == level) & (lengths > 0))
            left, right = self.first[chosen] + 1, self.last[chosen] + 1 - (1 << level)
            largest[chosen] = np.maximum(window[left], window[right])
        return largest


@dataclass(frozen=True, slots=True)
class Ramps:
    """The sum of the ramps slope * max(x - k, 0) of many whole numbers k."""

    corners: Ints
    slopes: Ints
    sums: Ints

    @classmethod
    def of(cls, corners: Ints, slopes: Ints) -> Ramps:
        """Take the numbers k in any order, each with its slope."""
        order = np.argsort(corners, kind="stable")
        corners, slopes = corners[order], slopes[order]
        return cls(corners, np.append(0, np.cumsum(slopes)), np.append(0, np.cumsum(slopes * corners)))

    def __call__(self, at: Ints) -> Ints:
        """Return the sum at each of `at`."""
        passed = np.searchsorted(self.corners, at)
        result: Ints = self.slopes[passed] * at - self.sums[passed]
        return result
