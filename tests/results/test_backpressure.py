"""A full decode side holds transfers up, keeps the prefill side's blocks taken and stalls prefills: what
`benches/backpressure.py` draws, asserted on the same run."""

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray

from frontier.results import Result
from frontier.results.columns import FINISHED

ROOT = Path(__file__).parents[2]
PREFILL, DECODE = 0, 1


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("backpressure", ROOT / "benches" / "backpressure.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


bench = _load()
PROMPT_BLOCKS = bench.PROMPT_TOKENS // bench.BLOCK_TOKENS


@cache
def saturated() -> Result:
    return bench.run()


def roomy() -> Result:
    """Return the run with enough blocks on the decode side."""
    prefill, _ = bench.SCENARIO["clusters"]
    return bench.run(clusters=[prefill, {"role": "decode"}])


def decode_steps(result: Result) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return when steps of the decode engine were formed, and the blocks that were free then."""
    rows = slice(*result.columns.replica_offsets[DECODE : DECODE + 2])
    steps = result.columns.steps
    return steps["start_ns"][rows], steps["free_blocks"][rows].astype(np.int64)


def tokens_by(result: Result, request: int, moments: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many tokens a request has at each moment."""
    runs = result.token_runs
    mine = np.flatnonzero(runs.request == request)
    ends = np.concatenate([runs.end_ns[runs.first[at] : runs.last[at] + 1] for at in mine])
    return np.searchsorted(ends, moments, side="right")


def test_the_decode_side_has_the_blocks_that_its_requests_should_hold() -> None:
    # From when its transfer starts until its last token a request holds the blocks of its prompt and output.
    result = saturated()
    moments, free = decode_steps(result)
    held = np.zeros(len(moments), np.int64)
    requests, transfers = result.columns.requests, result.columns.transfers
    for request, start in zip(transfers["request"].tolist(), transfers["start_ns"].tolist(), strict=True):
        here = (moments >= start) & (moments < requests["finished_ns"][request])
        tokens = bench.PROMPT_TOKENS + tokens_by(result, request, moments)
        held += np.where(here, -(-tokens // bench.BLOCK_TOKENS), 0)
    assert (bench.DECODE_BLOCKS - held).tolist() == free.tolist()
    assert free.min() >= 0


def test_transfers_pause_when_blocks_run_out_and_resume_at_the_step_that_frees_them() -> None:
    result = saturated()
    moments, free = decode_steps(result)
    transfers = result.columns.transfers
    ready, start = transfers["ready_ns"], transfers["start_ns"]
    finished = set(result.columns.requests["finished_ns"].tolist())
    formed = set(moments.tolist())
    held_up = 0
    for begin, since in zip(start.tolist(), ready.tolist(), strict=True):
        if begin not in formed:
            assert begin == since  # the decode side was idle
            continue
        # Steps that were formed while it waited: all of them were short of blocks for one more prompt.
        between = (moments >= since) & (moments < begin)
        assert (free[between] < PROMPT_BLOCKS).all()
        if between.any():
            held_up += 1
            assert begin in finished
    assert held_up > 50
    # First come, first served; and nobody is passed over who would fit.
    assert (np.diff(start) >= 0).all()
    for moment, left in zip(moments.tolist(), free.tolist(), strict=True):
        if ((ready <= moment) & (start > moment)).any():
            assert left < PROMPT_BLOCKS


def test_prefills_stall_with_all_blocks_held_for_transfers() -> None:
    result = saturated()
    timeline, transfers = result.columns.timeline, result.columns.transfers
    rows = np.flatnonzero(timeline["replica"] == PREFILL)
    time, used = timeline["time_ns"][rows], timeline["used_blocks"][rows]
    waiting, running = timeline["num_waiting"][rows], timeline["num_running"][rows]
    full = used > bench.PREFILL_BLOCKS - PROMPT_BLOCKS
    stalled = full & (waiting > 0) & (running == 0)
    assert stalled.sum() > 200  # a second
    # What it holds then is KV that is ready and not read.
    unread = [int(((transfers["ready_ns"] <= t) & (transfers["end_ns"] > t)).sum()) for t in time[stalled]]
    assert used[stalled].tolist() == [PROMPT_BLOCKS * count for count in unread]
    # And it computes nothing from one such moment to the next, unless a transfer ends between them.
    pairs = np.flatnonzero(stalled[1:] & stalled[:-1])
    ends = np.sort(transfers["end_ns"])
    same = np.searchsorted(ends, time[pairs]) == np.searchsorted(ends, time[pairs + 1])
    for name in ("prompt_tokens", "busy_ns"):
        grown = timeline[name][rows][pairs + 1] - timeline[name][rows][pairs]
        assert not grown[same].any()
    assert same.sum() > 100
    # With room for a prompt nothing waits for longer than the step under way.
    assert not (~full & (waiting > 0) & (running == 0)).any()


def test_all_requests_are_accounted_for_and_causes_add_up() -> None:
    result = saturated()
    requests, transfers = result.columns.requests, result.columns.transfers
    assert (requests["status"] == FINISHED).all()
    assert (requests["generated_tokens"] == bench.OUTPUT_TOKENS).all()
    assert len(transfers["request"]) == len(requests["status"]) == len(set(transfers["request"].tolist()))
    assert len(set(transfers["bytes"].tolist())) == 1
    lasted = requests["finished_ns"] - requests["arrival_ns"]
    causes = {name: requests[name] for name in requests if name.startswith("e2e_")}
    assert sum(causes.values()).tolist() == lasted.tolist()
    order = transfers["request"]
    waited = transfers["start_ns"] - transfers["ready_ns"]
    assert causes["e2e_kv_transfer_wait_ns"][order].tolist() == waited.tolist()
    assert (
        causes["e2e_kv_transfer_ns"][order].tolist() == (transfers["end_ns"] - transfers["start_ns"]).tolist()
    )
    # At the end nobody holds anything.
    assert [int(bench.sampled(result, engine, "used_blocks")[1][-1]) for engine in (PREFILL, DECODE)] == [
        0,
        0,
    ]


def test_with_room_on_the_decode_side_nothing_is_held_up() -> None:
    result = roomy()
    transfers = result.columns.transfers
    # A transfer waits for the step under way, of 5 ms and 20 us for every last token of a prompt.
    assert (transfers["start_ns"] - transfers["ready_ns"]).max() < 5_200_000
    _, used = bench.sampled(result, PREFILL, "used_blocks")
    _, waiting = bench.sampled(result, PREFILL, "num_waiting")
    assert used.max() == bench.PREFILL_BLOCKS - bench.PREFILL_BLOCKS % PROMPT_BLOCKS
    assert result.columns.totals["end_ns"] < saturated().columns.totals["end_ns"] - 10**9
    assert waiting.max() < bench.sampled(saturated(), PREFILL, "num_waiting")[1].max() / 2


@pytest.mark.parametrize("mode", ["pull", "push", "store", "buffer"])
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_unlike_requests_end_too_whoever_moves_their_kv(mode: str, seed: int) -> None:
    # Growing outputs preempt each other; what was preempted is computed again where it was.
    lengths = {
        "prompt_tokens": {"lognormal": {"mean": 400, "cv": 1, "max": 1500}},
        "output_tokens": {"uniform": {"min": 1, "max": 200}},
    }
    synthetic = bench.SCENARIO["workload"]["synthetic"] | lengths
    transfer = bench.SCENARIO["disaggregation"]["kv_transfer"] | {"mode": mode}
    result = bench.run(seed=seed, workload={"synthetic": synthetic}, disaggregation={"kv_transfer": transfer})
    requests = result.columns.requests
    assert (requests["status"] == FINISHED).all()
    assert (requests["generated_tokens"] == requests["output_tokens"]).all()
    lasted = requests["finished_ns"] - requests["arrival_ns"]
    assert sum(requests[name] for name in requests if name.startswith("e2e_")).tolist() == lasted.tolist()
    assert int(requests["e2e_kv_transfer_wait_ns"].max()) > 50_000_000 or mode == "buffer"
    assert [int(bench.sampled(result, engine, "used_blocks")[1][-1]) for engine in (PREFILL, DECODE)] == [
        0,
        0,
    ]


def test_the_picture_in_the_docs_is_that_of_this_run() -> None:
    drawn = bench.draw(bench.panels(saturated()))
    assert (ROOT / "docs" / "backpressure.svg").read_text(encoding="utf-8") == drawn
