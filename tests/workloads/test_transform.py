"""Cutting, stretching and thinning traces."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from frontier.errors import WorkloadError
from frontier.workloads import (
    OUTPUT_STREAM_BASE,
    LoadedTrace,
    limit,
    load_trace,
    sample,
    scale_rate,
    scale_time,
    slice_time,
)

S = 10**9


@pytest.fixture(scope="module")
def azure():
    return load_trace("azure-2023-conv")


@pytest.fixture
def small():
    """Return four requests; the third and fourth contain outputs of the first two."""
    base = OUTPUT_STREAM_BASE
    return LoadedTrace(
        arrival_ns=np.array([0, 10, 20, 30], np.int64),
        prompt_tokens=np.array([4, 5, 6, 7], np.uint32),
        output_tokens=np.array([2, 3, 1, 1], np.uint32),
        priority=np.array([0, 1, 2, 3], np.int32),
        session=np.array([9, 8, 9, 8], np.uint32),
        segment_offsets=np.array([0, 1, 1, 3, 6], np.uint64),
        segment_stream=np.array([5, 5, base, 5, base + 1, base], np.uint64),
        segment_start=np.zeros(6, np.uint32),
        segment_length=np.array([4, 4, 2, 3, 2, 2], np.uint32),
    )


def prompts(trace):
    columns = (trace.segment_stream, trace.segment_start, trace.segment_length)
    parts = list(zip(*(column.tolist() for column in columns), strict=True))
    offsets = trace.segment_offsets.tolist()
    return [parts[a:b] for a, b in pairwise(offsets)]


def test_a_slice_starts_its_own_time(azure):
    cut = slice_time(azure, 600 * S, 1200 * S)
    inside = (azure.arrival_ns >= 600 * S) & (azure.arrival_ns < 1200 * S)
    assert np.array_equal(cut.arrival_ns, azure.arrival_ns[inside] - 600 * S)
    assert np.array_equal(cut.prompt_tokens, azure.prompt_tokens[inside])
    assert len(slice_time(azure)) == len(azure)
    assert len(slice_time(azure, 600 * S)) + len(slice_time(azure, 0, 600 * S)) == len(azure)


def test_dropped_outputs_become_ordinary_streams(small):
    cut = slice_time(small, 10)
    base = OUTPUT_STREAM_BASE
    assert prompts(cut) == [[], [(5, 0, 4), (6, 0, 2)], [(5, 0, 3), (base, 0, 2), (6, 0, 2)]]
    assert cut.priority.tolist() == [1, 2, 3]
    assert cut.session.tolist() == [8, 9, 8]


def test_a_limit_keeps_the_first_requests(small):
    cut = limit(small, 3)
    assert cut.arrival_ns.tolist() == [0, 10, 20]
    assert prompts(cut) == prompts(small)[:3]
    assert len(limit(small, 99)) == 4


def test_scaling_is_exact(azure, small):
    assert scale_time(small, 0.25).arrival_ns.tolist() == [0, 2, 5, 8], "halves go to the even neighbour"
    assert scale_rate(small, 4).arrival_ns.tolist() == [0, 2, 5, 8]
    assert scale_time(small, 3).arrival_ns.tolist() == [0, 30, 60, 90]
    assert scale_time(small, 1) is small
    faster = scale_rate(azure, 2.5)
    assert faster.rate_per_s == pytest.approx(2.5 * azure.rate_per_s)
    assert (np.diff(faster.arrival_ns) >= 0).all()
    assert np.array_equal(faster.prompt_tokens, azure.prompt_tokens)
    assert prompts(scale_rate(small, 3)) == prompts(small)


def test_a_sample_is_a_subset_of_every_larger_one(azure):
    small, large = sample(azure, 0.3, seed=5), sample(azure, 0.5, seed=5)
    assert set(small.arrival_ns.tolist()) < set(large.arrival_ns.tolist())
    assert len(small) == pytest.approx(0.3 * len(azure), abs=5 * (0.21 * len(azure)) ** 0.5)
    assert len(sample(azure, 1.0)) == len(azure)
    other = sample(azure, 0.3, seed=6)
    assert not np.array_equal(other.arrival_ns, small.arrival_ns)


def splitmix64(x):
    """Return the scramble in integers without end."""
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_a_sample_is_the_same_on_every_platform(azure, seed):
    threshold = 0.1 * 2**53
    hashes = (splitmix64((splitmix64(seed) + i) % 2**64) for i in range(len(azure)))
    kept = [i for i, mixed in enumerate(hashes) if (mixed >> 11) < threshold]
    assert sample(azure, 0.1, seed).arrival_ns.tolist() == azure.arrival_ns[kept].tolist()


def test_a_sample_keeps_prompts(small):
    for seed in range(20):
        kept = sample(small, 0.6, seed)
        for length, prompt in zip(kept.prompt_tokens.tolist(), prompts(kept), strict=True):
            assert length in (4, 5, 6, 7)
            assert sum(part[2] for part in prompt) == (0 if length == 5 else length)


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda t: slice_time(t, -1), "must be 0 <= start < end"),
        (lambda t: slice_time(t, 5, 5), "must be 0 <= start < end"),
        (lambda t: slice_time(t, 31), "no request arrives 31ns or later after the first arrival"),
        (
            lambda t: slice_time(t, 6 * 10**11),
            "arrives 10min or later after the first arrival; the last arrives 30ns",
        ),
        (lambda t: slice_time(t, 21, 29), "no request arrives from 21ns until 29ns after the first arrival"),
        (lambda t: limit(t, 0), "num_requests was 0"),
        (lambda t: scale_time(t, 0), "factor was 0"),
        (lambda t: scale_time(t, float("nan")), "factor was nan"),
        (lambda t: scale_rate(t, float("inf")), "factor was inf"),
        (lambda t: scale_rate(t, 1e-300), "must stay below 2^62 ns"),
        (lambda t: sample(t, 0), "share was 0"),
        (lambda t: sample(t, 1.5), "share was 1.5"),
        (lambda t: sample(t, 1e-12), "left none"),
    ],
)
def test_what_cannot_be_done_is_refused(small, call, part):
    with pytest.raises(WorkloadError) as caught:
        call(small)
    assert part in str(caught.value)


def test_the_rate_of_requests_that_come_at_once_is_undefined(small):
    assert np.isnan(replace(small, arrival_ns=np.zeros(4, np.int64)).rate_per_s)
    assert small.rate_per_s == 3 / 30e-9
