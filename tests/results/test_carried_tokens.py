"""First tokens that came with the KV of their prompts, in results."""

from dataclasses import replace

import numpy as np
import pytest

import frontier
from frontier.errors import InvariantError
from frontier.results.checks import check_token_runs
from frontier.results.tokens import CARRIED, TokenRuns

SCENARIO = {
    "model": "llama-3.1-8b",
    "hardware": "h100",
    "engine": {"name": "sglang", "version": "0.5.3"},
    "clusters": [{"role": "prefill", "replicas": 2}, {"role": "decode", "replicas": 2}],
    "workload": {
        "synthetic": {
            "arrivals": {"poisson": {"rate": 40}},
            "num_requests": 150,
            "prompt_tokens": {"uniform": {"min": 1, "max": 3000}},
            "output_tokens": {"uniform": {"min": 1, "max": 30}},
        }
    },
}


@pytest.fixture(scope="module")
def result() -> frontier.Result:
    return frontier.simulate(SCENARIO)


def test_every_request_gets_one_token_from_its_prompt(result: frontier.Result) -> None:
    runs = result.columns.token_runs
    carried = runs["first_step"] == CARRIED
    assert np.array_equal(np.bincount(runs["request"][carried]), np.ones(150, np.int64))
    assert np.array_equal(result.token_runs.tokens_per_request, result.columns.requests["generated_tokens"])
    # Prompts are computed on the first two engines, and nowhere else.
    prompt = result.columns.requests["prompt_tokens"].sum()
    made = result.columns.timeline["prompt_tokens"]
    replica = result.columns.timeline["replica"]
    last = [made[replica == number].max() for number in range(4)]
    assert sum(last[:2]) == prompt
    assert sum(last[2:]) == 0


def test_gaps_are_those_of_the_tokens_one_by_one(result: frontier.Result) -> None:
    columns, runs = result.columns, result.columns.token_runs
    gaps, largest = [], np.full(150, -1, np.int64)
    times = [[int(first)] for first in columns.requests["first_token_ns"]]
    for request, first, last in zip(runs["request"], runs["first_step"], runs["last_step"], strict=True):
        if first != CARRIED:
            base = columns.replica_offsets[columns.requests["replica"][request]]
            times[request] += [int(ns) for ns in columns.steps["end_ns"][base + first : base + last + 1]]
    for request, own in enumerate(times):
        own_gaps = np.diff(own)
        gaps += own_gaps.tolist()
        largest[request] = own_gaps.max(initial=-1)
        assert own[-1] == columns.requests["finished_ns"][request]
    sample = result.token_runs.gaps()
    assert sorted(gaps) == np.repeat(sample.values, sample.counts).tolist()
    assert np.array_equal(result.token_runs.max_gap_ns, largest)
    moments = np.array(sorted(time for own in times for time in own))[::7]
    before = [sum(time < moment for own in times for time in own) for moment in moments]
    assert result.token_runs.tokens_until(moments).tolist() == before


def test_a_carried_token_comes_once_and_first(result: frontier.Result) -> None:
    columns = result.columns
    runs = columns.token_runs
    (row, *_) = np.flatnonzero(runs["first_step"] != CARRIED)
    for names in (("first_step",), ("last_step",), ("first_step", "last_step")):
        changed = dict(runs)
        for name in names:
            changed[name] = runs[name].copy()
            changed[name][row] = CARRIED
        with pytest.raises(InvariantError):
            check_token_runs(replace(columns, token_runs=changed))
    assert isinstance(check_token_runs(columns), TokenRuns)


def test_runs_are_kept_and_read_back(result: frontier.Result, tmp_path) -> None:  # type: ignore[no-untyped-def]
    result.save(tmp_path / "run")
    again = frontier.Result.load(tmp_path / "run")
    assert again.digest == result.digest
    assert again.summary() == result.summary()
