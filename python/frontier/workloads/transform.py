"""Traces from traces: cut, stretch, thin. Pure functions, exact on every platform.

Arithmetic is that of integers and of single IEEE operations on doubles, so equal arguments give equal traces
everywhere. Content is carried along: where a prompt contains the output of a request that was dropped, that
output becomes an ordinary stream, still shared by all prompts that contain it.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from frontier.errors import WorkloadError
from frontier.units import format_duration
from frontier.workloads.loaded import OUTPUT_STREAM_BASE, LoadedTrace
from frontier.workloads.segments import Segments


def slice_time(trace: LoadedTrace, start_ns: int = 0, end_ns: int | None = None) -> LoadedTrace:
    """Return the requests that arrive in `start_ns <= t < end_ns`, with `start_ns` as the new time 0.

    Times count from the trace's time 0, which in a trace that was just loaded is its first arrival.
    """
    if start_ns < 0 or (end_ns is not None and end_ns <= start_ns):
        raise WorkloadError(
            f"the slice was {start_ns} ... {end_ns} ns, must be 0 <= start < end", file=_file(trace)
        )
    first = int(np.searchsorted(trace.arrival_ns, start_ns))
    last = len(trace) if end_ns is None else int(np.searchsorted(trace.arrival_ns, end_ns))
    if first == last:
        begin = format_duration(start_ns)
        span = f"{begin} or later" if end_ns is None else f"from {begin} until {format_duration(end_ns)}"
        last_arrival = format_duration(int(trace.arrival_ns[-1]))
        message = (
            f"no request arrives {span} after the first arrival; the last arrives {last_arrival} after it"
        )
        raise WorkloadError(message, file=_file(trace))
    cut = take(trace, np.arange(first, last))
    return replace(cut, arrival_ns=cut.arrival_ns - start_ns)


def limit(trace: LoadedTrace, num_requests: int) -> LoadedTrace:
    """Return the first `num_requests` requests, or all if there are fewer."""
    if num_requests < 1:
        raise WorkloadError(f"num_requests was {num_requests}, must be at least 1", value=num_requests)
    return take(trace, np.arange(min(num_requests, len(trace))))


def scale_time(trace: LoadedTrace, factor: float) -> LoadedTrace:
    """Return the trace with every arrival multiplied by `factor`, to the nearest ns (half to even)."""
    _check_factor(factor)
    return _with_arrivals(trace, trace.arrival_ns.astype(np.float64) * factor, factor)


def scale_rate(trace: LoadedTrace, factor: float) -> LoadedTrace:
    """Return the trace at `factor` times its arrival rate: every arrival divided by it, to the nearest ns."""
    _check_factor(factor)
    return _with_arrivals(trace, trace.arrival_ns.astype(np.float64) / factor, factor)


def sample(trace: LoadedTrace, share: float, seed: int = 0) -> LoadedTrace:
    """Return each request with probability `share`, independently, arrivals kept (thinning).

    The choice hashes the seed and the request's position, so that a smaller share keeps a subset of what a
    larger one keeps. Thinned Poisson arrivals are Poisson again, at `share` of the rate.
    """
    if not 0 < share <= 1:
        raise WorkloadError(f"share was {share}, must be over 0 and at most 1", value=share)
    position = np.arange(len(trace), dtype=np.uint64)
    with np.errstate(over="ignore"):
        mixed = _mix(_mix(np.full(1, seed % 2**64, np.uint64)) + position)
    # The upper 53 bits as a double in [0, 1): exact.
    kept = np.flatnonzero((mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53 < share)
    if len(kept) == 0:
        raise WorkloadError(
            f"a share of {share} of {len(trace)} requests left none", file=_file(trace), value=share
        )
    return take(trace, kept)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the splitmix64 scramble (Steele, Lea and Flood, OOPSLA 2014)."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _check_factor(factor: float) -> None:
    if not (factor > 0 and math.isfinite(factor)):
        raise WorkloadError(f"factor was {factor}, must be over 0 and finite", value=factor)


def _with_arrivals(trace: LoadedTrace, arrival_ns: NDArray[np.float64], factor: float) -> LoadedTrace:
    if factor == 1:
        return trace
    if not arrival_ns[-1] < 2.0**62:
        message = f"factor was {factor}, which takes the last arrival to {arrival_ns[-1]:g} ns"
        raise WorkloadError(f"{message}, must stay below 2^62 ns", file=_file(trace), value=factor)
    return replace(trace, arrival_ns=np.rint(arrival_ns).astype(np.int64))


def take(trace: LoadedTrace, rows: NDArray[np.intp]) -> LoadedTrace:
    """Return the requests `rows`, in ascending order, with their prompts."""
    taken = replace(
        trace,
        arrival_ns=trace.arrival_ns[rows],
        prompt_tokens=trace.prompt_tokens[rows],
        output_tokens=trace.output_tokens[rows],
        priority=None if trace.priority is None else trace.priority[rows],
        session=None if trace.session is None else trace.session[rows],
        model=None if trace.model is None else trace.model[rows],
        encoder_tokens=None if trace.encoder_tokens is None else trace.encoder_tokens[rows],
    )
    if (
        trace.segment_offsets is None
        or trace.segment_stream is None
        or trace.segment_start is None
        or trace.segment_length is None
    ):
        return taken
    stream = _follow_outputs(trace.segment_stream, rows, len(trace))
    prompts = Segments(trace.segment_offsets, stream, trace.segment_start, trace.segment_length).take(rows)
    return replace(
        taken,
        segment_offsets=prompts.offsets,
        segment_stream=prompts.stream,
        segment_start=prompts.start,
        segment_length=prompts.length,
    )


def _follow_outputs(stream: NDArray[np.uint64], rows: NDArray[np.intp], num: int) -> NDArray[np.uint64]:
    """Return the streams with references to outputs moved to the new numbers of their requests."""
    base = np.uint64(OUTPUT_STREAM_BASE)
    is_output = stream >= base
    if not is_output.any():
        return stream
    ordinary = stream[~is_output]
    fresh = int(ordinary.max()) + 1 if len(ordinary) else 0
    moved = np.arange(fresh, fresh + num, dtype=np.uint64)
    moved[rows] = base + np.arange(len(rows), dtype=np.uint64)
    followed = stream.copy()
    followed[is_output] = moved[(stream[is_output] - base).astype(np.int64)]
    return followed


def _file(trace: LoadedTrace) -> str | None:
    return trace.report.file or None
