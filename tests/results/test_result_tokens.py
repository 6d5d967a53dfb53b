"""Inter-token gaps and token counts against a plain per-token loop."""

from unittest.mock import patch

import numpy as np
import pytest
from fifo import MS, Ask, fifo, run
from hypothesis import given, settings
from hypothesis import strategies as st

from frontier.results import TokenRuns, statistics, tokens
from frontier.results.columns import Columns


def tokens_by_loop(columns: Columns) -> list[list[int]]:
    """Return the times of the tokens of each request, one by one."""
    times: list[list[int]] = [[] for _ in columns.requests["status"]]
    runs = columns.token_runs
    for request, first, last, tokens_per_step in zip(*runs.values(), strict=True):
        base = int(columns.replica_offsets[columns.requests["replica"][request]])
        for step in range(first, last + 1):
            times[request] += [int(columns.steps["end_ns"][base + step])] * int(tokens_per_step)
    return times


@st.composite
def token_tables(draw: st.DrawFn) -> Columns:
    """Draw replicas with steps of random lengths, and requests that decode in random stretches of them."""
    replicas = draw(st.integers(1, 3))
    lengths = draw(st.lists(st.integers(0, 40), min_size=replicas, max_size=replicas))
    ends = [np.cumsum(draw(st.lists(st.integers(0, 9), min_size=n, max_size=n))) for n in lengths]
    request_of, first_of, last_of, per_step_of, replica_of = [], [], [], [], []
    for request in range(draw(st.integers(1, 6))):
        replica = draw(st.integers(0, replicas - 1))
        replica_of.append(replica)
        cuts = sorted(draw(st.sets(st.integers(0, max(lengths[replica] - 1, 0)), max_size=8)))
        for first, last in zip(cuts[::2], cuts[1::2], strict=False):
            if lengths[replica]:
                request_of.append(request)
                first_of.append(first)
                last_of.append(last)
                per_step_of.append(draw(st.sampled_from([1, 1, 2, 5])))
    # Runs of one request stay in order; requests interleave at random.
    ranks = draw(st.permutations(range(len(request_of))))
    order = sorted(range(len(request_of)), key=lambda index: (ranks[index], index))
    per_request = {
        request: iter([i for i in range(len(request_of)) if request_of[i] == request])
        for request in request_of
    }
    order = [next(per_request[request_of[index]]) for index in order]
    count = len(replica_of)
    return Columns(
        requests={"replica": np.array(replica_of, np.uint32), "status": np.zeros(count, np.uint8)},
        steps={"end_ns": np.concatenate([np.array(each, np.int64) for each in ends])},
        replica_offsets=np.cumsum([0, *lengths]).astype(np.int64),
        token_runs={
            "request": np.array(request_of, np.uint32)[order],
            "first_step": np.array(first_of, np.uint32)[order],
            "last_step": np.array(last_of, np.uint32)[order],
            "tokens_per_step": np.array(per_step_of, np.uint32)[order],
        },
        timeline={},
        transfers={},
        totals={},
        clusters=(),
        decision_log=None,
    )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(token_tables(), st.data())
def test_gaps_equal_those_of_a_loop_over_tokens(columns: Columns, data: st.DataObject) -> None:
    runs = TokenRuns.from_columns(columns)
    times = tokens_by_loop(columns)
    chosen = np.array(data.draw(st.lists(st.booleans(), min_size=len(times), max_size=len(times))), bool)
    gaps = np.sort(np.concatenate([np.zeros(0), *(np.diff(times[i]) for i in np.flatnonzero(chosen))]))
    block = data.draw(st.sampled_from([1, 2, 5, 1 << 16]))
    with patch.object(tokens, "_BLOCK", block), patch.object(statistics, "_BLOCK", block):
        found = runs.gaps(chosen)
        moments = found.moments()
    assert moments == pytest.approx(found.moments())
    assert np.repeat(found.values, found.counts).tolist() == gaps.tolist()
    assert len(found) == len(gaps)
    if len(gaps):
        assert found.mean() == pytest.approx(gaps.mean(), rel=1e-12)
        assert found.std() == pytest.approx(gaps.std(), rel=1e-9, abs=1e-9)
        assert found.max() == gaps.max()
        wanted = [0.0, 12.5, 50.0, 90.0, 99.0, 100.0]
        assert found.percentiles(wanted) == pytest.approx(np.percentile(gaps, wanted).tolist(), rel=1e-12)
    else:
        assert (found.mean(), found.std(), found.max(), found.percentiles([50.0])) == (
            None,
            None,
            None,
            [None],
        )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(token_tables())
def test_counts_and_largest_gaps_equal_those_of_a_loop(columns: Columns) -> None:
    runs = TokenRuns.from_columns(columns)
    times = tokens_by_loop(columns)
    assert runs.tokens_per_request.tolist() == [len(each) for each in times]
    assert runs.max_gap_ns.tolist() == [max(np.diff(each)) if len(each) > 1 else -1 for each in times]
    moments = np.arange(-1, int(max(runs.end_ns, default=0)) + 3)
    emitted = np.sort(np.concatenate([np.zeros(0), *times]))
    assert runs.tokens_until(moments).tolist() == np.searchsorted(emitted, moments).tolist()


def test_fifo_gaps_are_all_one_decode_step() -> None:
    result = run([Ask(0, 5), Ask(0, 1), Ask(7 * MS, 3)])
    gaps = result.inter_token_gaps()
    assert (len(gaps), gaps.mean(), gaps.max()) == (6, 10 * MS, 10 * MS)
    assert len(result.inter_token_gaps(np.array([False, True, True]))) == 2
    assert result.token_runs.max_gap_ns.tolist() == [10 * MS, -1, 10 * MS]


def test_a_gap_between_two_runs_is_counted_once() -> None:
    raw = fifo([Ask(0, 3), Ask(0, 2)])
    # Request 0 emits in steps 0, 1 and, after both steps of request 1, in step 4.
    raw["steps"]["end_ns"] = np.array([100, 110, 210, 220, 230], np.int64) * MS
    raw["token_runs"] = {
        "request": np.array([0, 1, 0], np.uint32),
        "first_step": np.array([0, 2, 4], np.uint32),
        "last_step": np.array([1, 3, 4], np.uint32),
        "tokens_per_step": np.ones(3, np.uint32),
    }
    runs = TokenRuns.from_columns(Columns.from_raw(raw))
    gaps = runs.gaps(np.array([True, False]))
    assert np.repeat(gaps.values, gaps.counts).tolist() == [10 * MS, 120 * MS]
    assert runs.max_gap_ns.tolist() == [120 * MS, 10 * MS]


def test_tokens_of_one_step_have_gaps_of_no_time() -> None:
    raw = fifo([Ask(0, 3)])
    # The second step accepted two drafts, and the third none.
    raw["token_runs"] = {
        "request": np.zeros(3, np.uint32),
        "first_step": np.array([0, 1, 2], np.uint32),
        "last_step": np.array([0, 1, 2], np.uint32),
        "tokens_per_step": np.array([1, 3, 1], np.uint32),
    }
    runs = TokenRuns.from_columns(Columns.from_raw(raw))
    gaps = runs.gaps()
    assert np.repeat(gaps.values, gaps.counts).tolist() == [0, 0, 10 * MS, 10 * MS]
    assert runs.tokens_per_request.tolist() == [5]
    assert runs.max_gap_ns.tolist() == [10 * MS]
    ends = np.array([0, 100, 101, 110, 111, 121]) * MS
    assert runs.tokens_until(ends).tolist() == [0, 0, 1, 1, 4, 5]


@pytest.mark.parametrize("mask", [np.ones(2, bool), np.ones(3, int)])
def test_a_wrong_mask_is_refused(mask: np.ndarray) -> None:
    with pytest.raises(ValueError, match="must be 3 booleans"):
        run([Ask(0, 2)] * 3).inter_token_gaps(mask)
