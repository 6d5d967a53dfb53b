"""Steps that are typical of a scenario, estimated without simulating it.

`frontier.explain` shows them by default. The prefill is the mean prompt. The decode batch is the smallest
power of two that keeps up with the arrivals of one replica, at the mean context, within what the engine, its
KV cache and the workload allow; where arrivals do not bound it (a burst), it is the largest batch allowed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from frontier.config import Scenario
    from frontier.config.arrivals import Arrivals
    from frontier.config.lengths import Length
    from frontier.lowering import Lowered


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """A batch of equal requests: how many, and tokens of each after the step."""

    requests: int
    context_tokens: int


class _Load(NamedTuple):
    """Mean lengths in tokens, requests per second and most requests in flight; None where unknown."""

    prompt_tokens: float
    output_tokens: float
    rate_per_s: float | None
    most_requests: int | None


def typical_prefill(scenario: Scenario, lowered: Lowered) -> int:
    """Return the tokens of the mean prompt that fit in one step."""
    resolved = lowered.resolved
    most = min(resolved.max_num_batched_tokens, resolved.max_model_len)
    return max(1, min(round(_load(scenario, lowered).prompt_tokens), most))


def mean_image(scenario: Scenario, lowered: Lowered) -> int:
    """Return the mean encoder tokens of requests that bring any."""
    synthetic = scenario.workload.synthetic
    if synthetic is not None and synthetic.encoder is not None:
        return max(1, round(mean_tokens(synthetic.encoder.tokens)))
    tokens = None if lowered.columns is None else lowered.columns.encoder_tokens
    brought = None if tokens is None else tokens[tokens > 0]
    return 1 if brought is None or not len(brought) else max(1, round(float(brought.mean())))


def mean_context(scenario: Scenario, lowered: Lowered) -> int:
    """Return the tokens of the mean prompt and of half the mean output, at most the longest request."""
    load = _load(scenario, lowered)
    return max(1, min(round(load.prompt_tokens + load.output_tokens / 2), lowered.resolved.max_model_len))


def mean_lengths(scenario: Scenario, lowered: Lowered) -> tuple[float, float]:
    """Return the tokens of the mean prompt and of the mean output."""
    load = _load(scenario, lowered)
    return load.prompt_tokens, load.output_tokens


def typical_decode(
    scenario: Scenario,
    lowered: Lowered,
    step_s: Callable[[int, int], float],
    *,
    requests: int | None,
    context: int | None,
    share: float = 1.0,
) -> DecodeStep:
    """Return a typical decode batch, with what is given as it is.

    Args:
        scenario: what is served.
        lowered: its plan.
        step_s: seconds of a decode step per token that a request gets, from its requests and the context of
            each.
        requests: requests of the batch, None to estimate them.
        context: tokens of each after the step, None for the mean prompt and half the mean output.
        share: of the requests that the cluster serves, where there are several.
    """
    resolved, load = lowered.resolved, _load(scenario, lowered)
    if context is None:
        context = mean_context(scenario, lowered)
    if requests is not None:
        return DecodeStep(requests, context)
    fits = resolved.memory.kv_cache_tokens // context
    drafts = 0 if resolved.draft is None else resolved.draft.num_speculative_tokens
    budget = resolved.max_num_batched_tokens // (1 + drafts)
    most = max(1, min(resolved.max_num_seqs, budget, fits))
    if load.most_requests is not None:
        most = max(1, min(most, math.ceil(load.most_requests * share / _engines(scenario))))
    if load.rate_per_s is None:
        return DecodeStep(most, context)
    wanted_per_s = load.rate_per_s * share * load.output_tokens / _engines(scenario)
    batch = 1
    while batch < most and batch / step_s(batch, context) < wanted_per_s:
        batch = min(2 * batch, most)
    return DecodeStep(batch, context)


def _engines(scenario: Scenario) -> int:
    """Return the engines that share the load."""
    return scenario.cluster.replicas * scenario.engine.data_parallel_size


def _load(scenario: Scenario, lowered: Lowered) -> _Load:
    synthetic, trace = scenario.workload.synthetic, scenario.workload.trace
    if synthetic is not None:
        prompt, output = mean_tokens(synthetic.prompt_tokens), mean_tokens(synthetic.output_tokens)
        prefix = synthetic.shared_prefix
        if prefix is not None:
            prompt += prefix.share * mean_tokens(prefix.tokens)
        return _Load(prompt, output, *_arrivals(synthetic.arrivals, synthetic.num_requests))
    columns = lowered.columns
    assert columns is not None
    assert trace is not None
    count = len(columns)
    prompt, output = float(columns.prompt_tokens.mean()), float(columns.output_tokens.mean())
    if trace.arrivals is not None:
        return _Load(prompt, output, *_arrivals(trace.arrivals, trace.num_requests or count))
    span_s = float(columns.arrival_ns[-1] - columns.arrival_ns[0]) / 1e9
    return _Load(prompt, output, (count - 1) / span_s if span_s > 0 else None, count)


def _arrivals(arrivals: Arrivals, num_requests: int | None) -> tuple[float | None, int | None]:
    """Return requests per second, None where they do not depend on time, and the most in flight."""
    if arrivals.closed_loop is not None:
        return None, min(arrivals.closed_loop.concurrency, num_requests or arrivals.closed_loop.concurrency)
    if arrivals.piecewise is not None:
        span_ns = sum(segment.duration for segment in arrivals.piecewise.segments)
        mean = arrivals.piecewise.mean_arrivals(span_ns)
        return mean * 1e9 / span_ns, num_requests
    mean_per_s = arrivals.mean_arrivals(1_000_000_000)
    return mean_per_s, num_requests


def mean_tokens(length: Length) -> float:
    """Return the mean of a law of lengths; of a lognormal one, that before truncation, kept in its range."""
    if length.lognormal is not None:
        return min(max(length.lognormal.mean, length.lognormal.min), length.lognormal.max)
    if length.zipf is not None:
        ranks = np.arange(1, length.zipf.max - length.zipf.min + 2, dtype=np.float64)
        weights = ranks**-length.zipf.exponent
        return float(length.zipf.min - 1 + (ranks * weights).sum() / weights.sum())
    if length.histogram is not None:
        edges, weights = np.array(length.histogram.edges), np.array(length.histogram.weights)
        weights = weights / weights.max()
        return max(1.0, float(((edges[1:] + edges[:-1]) / 2 * weights).sum() / weights.sum()))
    least, most = length.bounds()
    return (least + most) / 2
